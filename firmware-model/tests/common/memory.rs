//! A device with tiers, and the commands about its memory.
#![allow(dead_code, reason = "each test file uses its own part")]

use crate::common::{self, Host, Shape, admin};
use offmap_abi::admin::{
    MapAttr, MapCreateBody, MapCreated, MapLayout, MapLayoutBody, MapMigrateBody, MemoryInfoBody,
    MemoryListed, TierInfo,
};
use offmap_abi::{AdminOpcode, Completion, MapHandle, RequestId, Status, Submission};
use offmap_firmware_model::{Config, Ecc, Firmware, StepLimits, TierConfig};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};
use zerocopy::{FromBytes, IntoBytes};

pub(crate) struct Random(Xoshiro256PlusPlus);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Xoshiro256PlusPlus::seed_from_u64(seed))
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0.next_u64() % bound
    }
}

/// Scratch, then memory that is not for maps, then two more.
pub(crate) fn tiers() -> Vec<TierConfig> {
    let own = TierConfig {
        placeable: false,
        ..TierConfig::new("own", 4096)
    };
    vec![
        TierConfig::new("scratch", 16 << 10),
        own,
        TierConfig::new("sram", 100 * 1024 + 64).with_ecc(Ecc::Parity),
        TierConfig::new("dram", 300 * 1024).with_ecc(Ecc::Secded),
    ]
}

pub(crate) fn config() -> Config {
    Config {
        maps: 200,
        // So that a move takes many steps.
        step: StepLimits {
            bytes: 1024,
            buckets: 16,
        },
        ..Config::with_memory(0).with_tiers(tiers())
    }
}

pub(crate) fn at_iova(body: &mut MapCreateBody, attr: &MapAttr, host: &mut Host) {
    host.put(common::BASE, attr.as_bytes());
    body.attr = common::BASE.into();
    body.attr_len = (size_of::<MapAttr>() as u32).into();
}

/// MAP_CREATE with a tier: its number plus one, or 0.
pub(crate) fn create_in(firmware: &mut Firmware<Vec<u8>>, shape: &Shape, tier: u32) -> Completion {
    let mut host = Host::new(4096);
    let mut body = shape.body();
    let attr = MapAttr {
        tier: tier.into(),
        ..MapAttr::default()
    };
    at_iova(&mut body, &attr, &mut host);
    let command = Submission::new(AdminOpcode::MapCreate.0, RequestId(9), &body);
    admin(firmware, &command, &mut host).0
}

pub(crate) fn handle_of(done: &Completion) -> MapHandle {
    assert_eq!(done.status(), Status::Success);
    MapHandle(done.payload_as::<MapCreated>().map.get())
}

pub(crate) fn migrate_command(map: MapHandle, tier: u32) -> Submission {
    let body = MapMigrateBody {
        tier: tier.into(),
        reserved: [0; 44],
    };
    Submission::new(AdminOpcode::MapMigrate.0, RequestId(5), &body).with_map(map)
}

pub(crate) fn migrate(firmware: &mut Firmware<Vec<u8>>, map: MapHandle, tier: u32) -> Completion {
    admin(firmware, &migrate_command(map, tier), &mut Host::new(0)).0
}

/// MAP_LAYOUT.
pub(crate) fn layout(firmware: &mut Firmware<Vec<u8>>, map: MapHandle) -> MapLayout {
    let mut host = Host::new(256);
    let body = MapLayoutBody {
        iova: common::BASE.into(),
        len: 256.into(),
        reserved: [0; 36],
    };
    let command = Submission::new(AdminOpcode::MapLayout.0, RequestId(6), &body).with_map(map);
    let (done, _) = admin(firmware, &command, &mut host);
    assert_eq!(done.status(), Status::Success);
    assert_eq!(done.count.get() as usize, size_of::<MapLayout>());
    MapLayout::read_from_bytes(host.at(common::BASE, size_of::<MapLayout>())).expect("its size")
}

/// MEMORY_INFO, a tier at a time.
pub(crate) fn memory_info(firmware: &mut Firmware<Vec<u8>>) -> Vec<TierInfo> {
    let mut tiers = Vec::new();
    loop {
        let mut host = Host::new(128);
        let body = MemoryInfoBody {
            iova: common::BASE.into(),
            len: 128.into(),
            first: (tiers.len() as u32).into(),
            reserved: [0; 32],
        };
        let command = Submission::new(AdminOpcode::MemoryInfo.0, RequestId(6), &body);
        let (done, steps) = admin(firmware, &command, &mut host);
        assert_eq!((done.status(), steps), (Status::Success, 1));
        let listed: MemoryListed = done.payload_as();
        assert_eq!(listed.line_bytes.get(), 64);
        if tiers.len() == listed.tiers.get() as usize {
            assert_eq!(done.count.get(), 0);
            return tiers;
        }
        assert_eq!(done.count.get() as usize, size_of::<TierInfo>());
        let bytes = host.at(common::BASE, size_of::<TierInfo>());
        tiers.push(TierInfo::read_from_bytes(bytes).expect("its size"));
    }
}
