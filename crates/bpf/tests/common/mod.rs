//! A recording offload device, and shorthands.
#![allow(dead_code, reason = "each test file uses a part")]

use offmap_bpf::device::{MapSpec, OffloadDevice, OffloadRules, OffloadedMap};
use offmap_bpf::error::Result;
use offmap_bpf::{Errno, Error, MapCreateAttr, MapType, System, SystemConfig};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

pub(crate) fn system() -> Arc<System> {
    System::new(SystemConfig {
        possible_cpus: 2,
        ..SystemConfig::default()
    })
}

/// Key 4, value 8, as in the contract's recorded tables.
pub(crate) fn attr(map_type: MapType, max_entries: u32) -> MapCreateAttr {
    MapCreateAttr {
        map_type: map_type.0,
        key_size: 4,
        value_size: 8,
        max_entries,
        ..MapCreateAttr::default()
    }
}

pub(crate) fn errno<T: std::fmt::Debug>(result: Result<T>) -> Errno {
    let error = result.expect_err("should have been refused");
    assert!(!error.reason().is_empty());
    error.errno()
}

pub(crate) type Log = Arc<Mutex<Vec<String>>>;

pub(crate) struct FakeDevice {
    pub(crate) log: Log,
    pub(crate) rules: OffloadRules,
    pub(crate) refuse: Option<Errno>,
}

impl FakeDevice {
    pub(crate) fn new() -> (Arc<Self>, Log) {
        Self::with(OffloadRules::default(), None)
    }

    pub(crate) fn with(rules: OffloadRules, refuse: Option<Errno>) -> (Arc<Self>, Log) {
        let log = Log::default();
        let device = Self {
            log: Arc::clone(&log),
            rules,
            refuse,
        };
        (Arc::new(device), log)
    }
}

impl OffloadDevice for FakeDevice {
    fn describe(&self) -> String {
        "a fake".into()
    }

    fn rules(&self) -> OffloadRules {
        self.rules
    }

    fn map_alloc(&self, spec: &MapSpec) -> Result<Arc<dyn OffloadedMap>> {
        let mut line = String::from("ALLOC");
        if !spec.map_flags.is_empty() {
            line += &format!(" flags {:#x}", spec.map_flags.bits());
        }
        self.log.lock().unwrap().push(line);
        match self.refuse {
            Some(errno) => Err(Error::new(errno, "told to fail")),
            None => Ok(Arc::new(FakeMap {
                max_entries: spec.max_entries as usize,
                log: Arc::clone(&self.log),
                entries: Mutex::default(),
            })),
        }
    }
}

struct FakeMap {
    max_entries: usize,
    log: Log,
    entries: Mutex<BTreeMap<Vec<u8>, Vec<u8>>>,
}

impl OffloadedMap for FakeMap {
    fn lookup(&self, key: &[u8], value: &mut [u8], _flags: u64) -> Result<()> {
        match self.entries.lock().unwrap().get(key) {
            Some(found) => {
                value.copy_from_slice(found);
                Ok(())
            }
            None => Err(Error::new(Errno::ENOENT, "missing")),
        }
    }

    fn update(&self, key: &[u8], value: &[u8], flags: u64) -> Result<()> {
        let mut entries = self.entries.lock().unwrap();
        let present = entries.contains_key(key);
        let refused = match flags {
            1 if present => Some(Errno::EEXIST),
            2 if !present => Some(Errno::ENOENT),
            _ if !present && entries.len() == self.max_entries => Some(Errno::E2BIG),
            _ => None,
        };
        if let Some(errno) = refused {
            return Err(Error::new(errno, "refused"));
        }
        entries.insert(key.into(), value.into());
        Ok(())
    }

    fn delete(&self, key: &[u8]) -> Result<()> {
        let removed = self.entries.lock().unwrap().remove(key);
        removed
            .map(drop)
            .ok_or(Error::new(Errno::ENOENT, "missing"))
    }

    fn get_next_key(&self, key: Option<&[u8]>, next: &mut [u8]) -> Result<()> {
        let entries = self.entries.lock().unwrap();
        let found = match key.filter(|key| entries.contains_key(*key)) {
            Some(key) => entries.keys().find(|other| other.as_slice() > key),
            None => entries.keys().next(),
        };
        next.copy_from_slice(found.ok_or(Error::new(Errno::ENOENT, "end"))?);
        Ok(())
    }

    fn device_bytes(&self) -> u64 {
        4096
    }

    fn free(&self) {
        let worker = std::thread::current().name() == Some("bpf-map-free");
        let line = if worker {
            "FREE"
        } else {
            "FREE off the worker"
        };
        self.log.lock().unwrap().push(line.into());
    }
}

pub(crate) fn logged(log: &Log) -> Vec<String> {
    log.lock().unwrap().clone()
}

/// xorshift64*, so that a failing run is repeated by its seed.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
}
