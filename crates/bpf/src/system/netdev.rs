//! Network devices and which of them maps can be offloaded to.

use super::System;
use super::frees::Frees;
use crate::caller::{Caller, NetNs};
use crate::device::{MapSpec, OffloadDevice, OffloadRules, OffloadedMap};
use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::map::{Attached, OffloadMap};
use crate::memory::Charge;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

/// Index of a network device, as in `map_ifindex`. Never used twice.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct IfIndex(pub u32);

/// What a network device says to `ndo_bpf`.
#[derive(Clone)]
enum Offload {
    /// It has no `ndo_bpf`.
    None,
    /// It has one, and its driver has not registered it for offload.
    NotRegistered,
    Device(Arc<dyn OffloadDevice>),
}

struct Netdev {
    name: String,
    netns: NetNs,
    offload: Offload,
    maps: Vec<Weak<OffloadMap>>,
    /// Held for reading by those who have the device allocate a map; only taken while the
    /// netdev is in the table, so that nobody waits for it there.
    allocs: Arc<RwLock<()>>,
}

/// The network devices of all namespaces.
pub(super) struct Netdevs(Mutex<State>);

struct State {
    by_index: BTreeMap<u32, Netdev>,
    next: u32,
}

/// `IFNAMSIZ` without the NUL.
const MAX_NAME: usize = 15;

impl Netdevs {
    pub(super) fn new() -> Self {
        let lo = Netdev {
            name: "lo".into(),
            netns: NetNs::INIT,
            offload: Offload::None,
            maps: Vec::new(),
            allocs: Arc::default(),
        };
        Self(Mutex::new(State {
            by_index: BTreeMap::from([(1, lo)]),
            next: 2,
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, name: &str, netns: NetNs, offload: Offload) -> Result<IfIndex> {
        let legal = |byte: u8| byte.is_ascii_graphic() && byte != b'/' && byte != b':';
        if name.is_empty()
            || name.len() > MAX_NAME
            || matches!(name, "." | "..")
            || !name.bytes().all(legal)
        {
            return Err(Error::because(
                Errno::EINVAL,
                format!("{name:?} is no interface name: 1 to {MAX_NAME} printable bytes"),
            ));
        }
        let mut state = self.state();
        let taken = |device: &Netdev| device.netns == netns && device.name == name;
        if state.by_index.values().any(taken) {
            return Err(Error::because(
                Errno::EEXIST,
                format!("the namespace has an interface {name:?} already"),
            ));
        }
        let index = state.next;
        if index > i32::MAX as u32 {
            return Err(Error::new(Errno::ENOSPC, "all interface indexes were used"));
        }
        state.next += 1;
        state.by_index.insert(
            index,
            Netdev {
                name: name.into(),
                netns,
                offload,
                maps: Vec::new(),
                allocs: Arc::default(),
            },
        );
        Ok(IfIndex(index))
    }

    /// `bpf_map_offload_map_alloc` from the netdev lookup on; `alloc` has the device allocate.
    ///
    /// The kernel holds its device lock while the driver works. Here the table is not locked
    /// meanwhile, so that a slow device holds up only its own netdev's removal; one that is
    /// removed while it works answers as if it had gone before.
    pub(super) fn map_alloc(
        &self,
        caller: &Caller,
        ifindex: u32,
        spec: &MapSpec,
        charge: impl FnOnce() -> Result<Option<Charge>>,
        frees: &Frees,
        alloc: impl FnOnce(&Arc<dyn OffloadDevice>) -> Result<Arc<dyn OffloadedMap>>,
    ) -> Result<(Arc<OffloadMap>, Option<Charge>)> {
        let refused =
            |errno, why: &str| Error::because(errno, format!("map_ifindex {ifindex}: {why}"));
        let missing = || {
            refused(
                Errno::EINVAL,
                "the caller's namespace has no such interface",
            )
        };
        let state = self.state();
        let netdev = state
            .by_index
            .get(&ifindex)
            .filter(|netdev| netdev.netns == caller.netns)
            .map(|netdev| (netdev.offload.clone(), Arc::clone(&netdev.allocs)));
        // Ends when this function does: removal waits for that.
        let _running = netdev
            .as_ref()
            .map(|(_, allocs)| allocs.read().unwrap_or_else(PoisonError::into_inner));
        drop(state);

        let rules = match &netdev {
            Some((Offload::Device(device), _)) => device.rules(),
            _ => OffloadRules::default(),
        };
        if !rules.admits(spec.map_type) {
            let why = match &netdev {
                Some((Offload::Device(device), _)) => device.type_refusal(spec.map_type),
                _ => None,
            };
            let why = why.unwrap_or_else(|| "this type cannot be offloaded".to_owned());
            return Err(Error::because(
                Errno::EINVAL,
                format!("map_type {}: {why}", spec.map_type),
            ));
        }
        let charge = charge()?;
        let device = match netdev.as_ref().map(|(offload, _)| offload) {
            None => return Err(missing()),
            Some(Offload::Device(device)) => device,
            Some(Offload::NotRegistered) => {
                return Err(refused(
                    Errno::EINVAL,
                    "the interface's driver has not registered it for offload",
                ));
            }
            Some(Offload::None) => {
                return Err(refused(Errno::EOPNOTSUPP, "the interface cannot offload"));
            }
        };
        let on_device = alloc(device)?;

        let mut state = self.state();
        let Some(netdev) = state.by_index.get_mut(&ifindex) else {
            drop(state);
            frees.run(move || on_device.free());
            return Err(missing());
        };
        let attached = Attached {
            ifindex,
            netns: netdev.netns,
        };
        let device = Arc::downgrade(device);
        let map = Arc::new(OffloadMap::new(on_device, attached, rules, device));
        if netdev.maps.len() == netdev.maps.capacity() {
            netdev.maps.retain(|map| map.strong_count() != 0);
        }
        netdev.maps.push(Arc::downgrade(&map));
        Ok((map, charge))
    }
}

impl System {
    /// Adds a network device that cannot offload (it has no `ndo_bpf`), in `netns`.
    ///
    /// EINVAL for an illegal name, EEXIST when the namespace has one of that name.
    pub fn add_netdev(&self, name: &str, netns: NetNs) -> Result<IfIndex> {
        self.netdevs.add(name, netns, Offload::None)
    }

    /// Adds a network device whose driver could offload and has not registered it: maps are
    /// refused with EINVAL. Errors as [`System::add_netdev`].
    pub fn add_netdev_unregistered(&self, name: &str, netns: NetNs) -> Result<IfIndex> {
        self.netdevs.add(name, netns, Offload::NotRegistered)
    }

    /// Adds a network device of the first namespace and registers it for offload
    /// (`bpf_offload_dev_netdev_register`). Several may belong to one offload device: its
    /// ports. Errors as [`System::add_netdev`].
    pub fn register_netdev(&self, name: &str, device: Arc<dyn OffloadDevice>) -> Result<IfIndex> {
        self.register_netdev_in(NetNs::INIT, name, device)
    }

    /// As [`System::register_netdev`], in the namespace `netns`.
    pub fn register_netdev_in(
        &self,
        netns: NetNs,
        name: &str,
        device: Arc<dyn OffloadDevice>,
    ) -> Result<IfIndex> {
        self.netdevs.add(name, netns, Offload::Device(device))
    }

    /// Registers each port of an offload device, in the first namespace: the interfaces
    /// `stem0`, `stem1` and so on, in the order of the answer. All or none: where one cannot be
    /// registered those before it are removed again. Errors as [`System::add_netdev`].
    pub fn register_ports(
        &self,
        stem: &str,
        device: &Arc<dyn OffloadDevice>,
    ) -> Result<Vec<IfIndex>> {
        let mut ports = Vec::new();
        for port in 0..device.ports().max(1) {
            match self.register_netdev(&format!("{stem}{port}"), Arc::clone(device)) {
                Ok(ifindex) => ports.push(ifindex),
                Err(error) => {
                    for ifindex in ports {
                        // Who removed it meanwhile has done what was to be done.
                        let _ = self.unregister_netdev(ifindex);
                    }
                    return Err(error);
                }
            }
        }
        Ok(ports)
    }

    /// The offload device behind the interface `ifindex`; `None` where there is none.
    pub fn offload_device(&self, ifindex: IfIndex) -> Option<Arc<dyn OffloadDevice>> {
        match &self.netdevs.state().by_index.get(&ifindex.0)?.offload {
            Offload::Device(device) => Some(Arc::clone(device)),
            Offload::None | Offload::NotRegistered => None,
        }
    }

    /// Index of the interface `name` in `netns`.
    pub fn netdev_by_name(&self, netns: NetNs, name: &str) -> Option<IfIndex> {
        let state = self.netdevs.state();
        let mut devices = state.by_index.iter();
        devices
            .find(|(_, device)| device.netns == netns && device.name == name)
            .map(|(&index, _)| IfIndex(index))
    }

    /// Name of the interface `ifindex`.
    pub fn netdev_name(&self, ifindex: IfIndex) -> Option<String> {
        let state = self.netdevs.state();
        state
            .by_index
            .get(&ifindex.0)
            .map(|device| device.name.clone())
    }

    /// Removes a network device (`bpf_offload_dev_netdev_unregister`, and the device itself).
    ///
    /// Its maps move to another netdev of the same offload device, the one registered last.
    /// If there is none, they are freed on the device before this returns, their ids are free,
    /// and every later data operation gives ENODEV. Operations in progress end first. ENODEV
    /// when there is no such interface.
    pub fn unregister_netdev(&self, ifindex: IfIndex) -> Result<()> {
        let removed = {
            let mut state = self.netdevs.state();
            let netdev = state.by_index.remove(&ifindex.0).ok_or_else(|| {
                Error::because(
                    Errno::ENODEV,
                    format!("there is no interface with index {}", ifindex.0),
                )
            })?;
            let Offload::Device(device) = &netdev.offload else {
                return Ok(());
            };
            let sibling = state.by_index.iter_mut().rev().find(|(_, other)| {
                matches!(&other.offload, Offload::Device(theirs) if Arc::ptr_eq(theirs, device))
            });
            if let Some((&ifindex, sibling)) = sibling {
                let netns = sibling.netns;
                for map in netdev.maps {
                    if let Some(live) = map.upgrade() {
                        live.move_to(Attached { ifindex, netns });
                        sibling.maps.push(map);
                    }
                }
                return Ok(());
            }
            netdev
        };
        // What still runs on the device ends before this goes on, with no lock held that
        // others need.
        drop(removed.allocs.write());
        let live = removed.maps.iter().filter_map(Weak::upgrade);
        let orphans: Vec<_> = live.filter_map(|map| map.orphan()).collect();
        self.shared.frees.run(move || {
            for map in orphans {
                map.free();
            }
        });
        Ok(())
    }
}
