//! `ObjectPool` as the model's subject.
//!
//! Not here: what is expected of it.

use super::{
    Acquire, Ask, Kind, Operation, Refusal, Resource, Setting, Subject, Supply, Wear, drive,
};
use millpond::{
    AcquireObjectError, AddError, Counts, Object, ObjectPool, OwnedObject, TryAcquireError,
};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

pub(super) fn run(setting: Setting, script: impl Iterator<Item = Operation>) -> u64 {
    let supply = Arc::<Supply>::default();
    let builder = ObjectPool::builder(setting.capacity())
        .shards(1)
        .order(setting.order())
        .reset(|resource: &mut Resource| resource.state != Wear::Broken);
    let pool = if setting.kind == Kind::Made {
        let supply = supply.clone();
        builder.build(move || supply.make())
    } else {
        builder.build_from((0..setting.stock()).map(|_| supply.make()))
    };
    let pool = pool.expect("the settings are in range");
    let operations = drive(&pool, supply.clone(), setting, script);
    drop(pool);
    assert_eq!(supply.alive.load(Relaxed), 0, "resources that outlive the pool");
    operations
}

pub(super) enum Guard<'p> {
    Borrowed(Object<'p, Resource>),
    Owned(OwnedObject<Resource>),
}

fn refusal(error: AcquireObjectError) -> Refusal {
    match error {
        AcquireObjectError::Closed => Refusal::Closed,
        other => unreachable!("BUG: there is no deadline: {other}"),
    }
}

impl Subject for ObjectPool<Resource> {
    type Guard<'p> = Guard<'p>;

    fn acquire(&self, ask: Ask) -> Acquire<'_, Guard<'_>> {
        Box::pin(async move {
            match ask {
                Ask::Owned => self.acquire_owned().await.map(Guard::Owned).map_err(refusal),
                Ask::Borrowed => self.acquire().await.map(Guard::Borrowed).map_err(refusal),
                Ask::High => unreachable!("BUG: this pool has one line"),
            }
        })
    }

    fn try_acquire(&self) -> Result<Guard<'_>, TryAcquireError> {
        self.try_acquire().map(Guard::Borrowed)
    }

    fn resource<'g>(guard: &'g mut Guard<'_>) -> &'g mut Resource {
        match guard {
            Guard::Borrowed(object) => object,
            Guard::Owned(object) => object,
        }
    }

    fn detach(guard: Guard<'_>) -> Resource {
        match guard {
            Guard::Borrowed(object) => object.detach(),
            Guard::Owned(object) => object.detach(),
        }
    }

    fn discard(mut guard: Guard<'_>) {
        Self::resource(&mut guard).state = Wear::Broken;
    }

    fn add(&self, resource: Resource) -> Result<(), AddError<Resource>> {
        self.add(resource)
    }

    fn close(&self) {
        self.close();
    }

    fn is_closed(&self) -> bool {
        self.is_closed()
    }

    fn counts(&self) -> Counts {
        self.counts()
    }
}
