//! A timing profile with round figures, with all that costs something to charge: an IOMMU, a cache before memory.

use offmap_firmware_model::time::Picos;
use offmap_firmware_model::time::pcie::LinkSpec;
use offmap_firmware_model::time::profile::{
    Cache, CommandCycles, DeviceTiming, HostTiming, Iommu, Tier, TimingProfile,
};

/// The profile.
pub(crate) fn timing_profile() -> TimingProfile {
    let link = LinkSpec {
        generation: 3,
        lanes: 8,
        max_payload: 256,
        max_read_request: 512,
        read_completion_boundary: 64,
        completes_by_boundary: false,
        long_addresses: true,
        ecrc: false,
    };
    TimingProfile {
        name: "test".into(),
        description: "round figures".into(),
        link: link.build().expect("it is a link"),
        host: HostTiming {
            mmio_write: Picos(100_000),
            read: Picos(400_000),
            write: Picos(90_000),
            memory: Picos(70_000),
            warm: true,
            remote_node: Picos(110_000),
            interrupt: Picos(1_000_000),
            iommu: Some(Iommu {
                entries: 128,
                page_bytes: 4096,
                miss: Picos(330_000),
                walkers: 4,
            }),
        },
        device: DeviceTiming {
            clock_mhz: 1000,
            engines: 8,
            doorbell: Picos(20_000),
            dma_setup: Picos(50_000),
            dma_issue: Picos(10_000),
            dma_store_bytes_per_s: 10_000_000_000,
            read_tags: 32,
            cycles: CommandCycles {
                command: 100,
                element: 40,
                access: 5,
            },
        },
        tiers: vec![Tier {
            name: "dram".into(),
            size_bytes: 1 << 32,
            access_bytes: 64,
            latency: Picos(200_000),
            bytes_per_s: 12_800_000_000,
            outstanding: 32,
            cache: Some(Cache {
                size_bytes: 1 << 20,
                line_bytes: 64,
                hit: Picos(50_000),
            }),
        }],
    }
}
