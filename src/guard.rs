//! What all guards have in common: they stand for the value that they hold.
//!
//! Not here: what happens when one is dropped (`object.rs`, `pool/guard.rs`).

/// Gives a guard the access traits.
///
/// `$field` is where in the resource the value stands; without it the resource is the value.
macro_rules! access {
    ($guard:ident<$($lifetime:lifetime,)? $generic:ident $(: $bound:path)?>, $target:ty, $($field:ident)?) => {
        impl<$($lifetime,)? $generic $(: $bound)?> std::ops::Deref for $guard<$($lifetime,)? $generic> {
            type Target = $target;

            #[inline]
            fn deref(&self) -> &$target {
                &(*self.loan.resource())$(.$field)?
            }
        }

        impl<$($lifetime,)? $generic $(: $bound)?> std::ops::DerefMut for $guard<$($lifetime,)? $generic> {
            #[inline]
            fn deref_mut(&mut self) -> &mut $target {
                &mut (*self.loan.resource_mut())$(.$field)?
            }
        }

        impl<$($lifetime,)? $generic $(: $bound)?> AsRef<$target> for $guard<$($lifetime,)? $generic> {
            fn as_ref(&self) -> &$target {
                self
            }
        }

        impl<$($lifetime,)? $generic $(: $bound)?> AsMut<$target> for $guard<$($lifetime,)? $generic> {
            fn as_mut(&mut self) -> &mut $target {
                self
            }
        }

        impl<$($lifetime,)? $generic $(: $bound)?> std::fmt::Debug for $guard<$($lifetime,)? $generic>
        where
            $target: std::fmt::Debug,
        {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_tuple(stringify!($guard)).field(&**self).finish()
            }
        }
    };
}

pub(crate) use access;
