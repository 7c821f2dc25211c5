//! Adapters that run the managers of other pools unchanged: one feature and one file each.
