//! Panics of others' code: they go no further than the call, and nor does what they leave behind.
//!
//! Not here: what is done about them.

use crate::{Object, ObjectPool, OwnedObject, WeakObjectPool};
use std::any::Any;
use std::panic::{AssertUnwindSafe, RefUnwindSafe, UnwindSafe, catch_unwind};

/// Does this; if it panics, which the panic hook reports, that is what it comes to.
#[inline]
pub(crate) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, Panic> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|left| Panic(Some(left)))
}

/// Tells an event to whoever listens. A panic of a listener's is the panic hook's, and must not get in the way of
/// what is told, nor of what is to be done after it.
#[cfg(feature = "tracing")]
macro_rules! tell {
    ($level:ident, $($fields:tt)*) => {
        drop($crate::panics::caught(|| tracing::$level!(target: "millpond", $($fields)*)))
    };
}

#[cfg(feature = "tracing")]
pub(crate) use tell;

/// What a panic has left. It may be dropped anywhere.
pub(crate) struct Panic(Option<Box<dyn Any + Send>>);

impl Panic {
    /// What it said.
    #[cfg_attr(not(feature = "tokio"), allow(dead_code, reason = "only `Pool` tells"))]
    pub(crate) fn message(&self) -> String {
        let text = self.0.as_ref().and_then(|left| {
            let text = left.downcast_ref::<&str>().copied();
            text.or_else(|| left.downcast_ref::<String>().map(String::as_str))
        });
        text.unwrap_or("no message").to_owned()
    }
}

impl Drop for Panic {
    #[cold]
    fn drop(&mut self) {
        let left = self.0.take();
        // It may panic in turn; what that leaves is kept for good, or there would be no end to it.
        if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(left))) {
            Box::leak(again);
        }
    }
}

// Handles survive whatever panics beside them, the code of their managers included. What is in a guard that a
// panic drops is closed or dropped; a guard that outlives the panic is as good as what is in it.

impl<T> UnwindSafe for ObjectPool<T> {}
impl<T> RefUnwindSafe for ObjectPool<T> {}
impl<T> UnwindSafe for WeakObjectPool<T> {}
impl<T> RefUnwindSafe for WeakObjectPool<T> {}
impl<T> UnwindSafe for Object<'_, T> {}
impl<T: RefUnwindSafe> RefUnwindSafe for Object<'_, T> {}
impl<T> UnwindSafe for OwnedObject<T> {}
impl<T: RefUnwindSafe> RefUnwindSafe for OwnedObject<T> {}

#[cfg(feature = "tokio")]
mod managed {
    use super::{RefUnwindSafe, UnwindSafe};
    use crate::{Manager, Pool, Pooled, PooledOwned, WeakPool, blocking};

    impl<M: Manager> UnwindSafe for Pool<M> {}
    impl<M: Manager> RefUnwindSafe for Pool<M> {}
    impl<M: Manager> UnwindSafe for WeakPool<M> {}
    impl<M: Manager> RefUnwindSafe for WeakPool<M> {}
    impl<M: Manager> UnwindSafe for blocking::Pool<M> {}
    impl<M: Manager> RefUnwindSafe for blocking::Pool<M> {}
    impl<M: Manager> UnwindSafe for blocking::WeakPool<M> {}
    impl<M: Manager> RefUnwindSafe for blocking::WeakPool<M> {}
    impl<M: Manager> UnwindSafe for Pooled<'_, M> {}
    impl<M: Manager<Connection: RefUnwindSafe>> RefUnwindSafe for Pooled<'_, M> {}
    impl<M: Manager> UnwindSafe for PooledOwned<M> {}
    impl<M: Manager<Connection: RefUnwindSafe>> RefUnwindSafe for PooledOwned<M> {}
}

#[cfg(feature = "cluster")]
mod cluster {
    use super::{RefUnwindSafe, UnwindSafe};
    use crate::Manager;
    use crate::cluster::{Cluster, ClusterGuard, Key, NodeHandle, WeakCluster};

    impl<K: Key, M: Manager> UnwindSafe for Cluster<K, M> {}
    impl<K: Key, M: Manager> RefUnwindSafe for Cluster<K, M> {}
    impl<K: Key, M: Manager> UnwindSafe for WeakCluster<K, M> {}
    impl<K: Key, M: Manager> RefUnwindSafe for WeakCluster<K, M> {}
    impl<K: Key, M: Manager> UnwindSafe for NodeHandle<K, M> {}
    impl<K: Key, M: Manager> RefUnwindSafe for NodeHandle<K, M> {}
    impl<K: Key, M: Manager> UnwindSafe for ClusterGuard<'_, K, M> {}
    impl<K: Key, M: Manager<Connection: RefUnwindSafe>> RefUnwindSafe for ClusterGuard<'_, K, M> {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::panic_any;

    /// Leaves itself behind when it is dropped.
    struct Bomb;

    impl Drop for Bomb {
        fn drop(&mut self) {
            panic_any(Self);
        }
    }

    #[test]
    fn what_a_panic_has_left_does_not_panic_where_it_is_dropped() {
        assert!(!caught(|| panic_any(Bomb)).unwrap_or(false));
    }

    #[test]
    fn a_panic_says_what_it_said() {
        let said = |work: fn()| caught(work).expect_err("it panics").message();
        assert_eq!(said(|| panic!("scripted")), "scripted");
        assert_eq!(said(|| panic!("scripted {}", 2)), "scripted 2");
        assert_eq!(said(|| panic_any(3)), "no message");
    }
}
