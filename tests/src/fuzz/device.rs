//! A host that does anything at all to the emulated device: entries, doorbells, notify words,
//! registers at any width and alignment, config space, mappings that come and go, rings that lie
//! across one another, results that are sent to rings.

use super::bytes::Bytes;
use crate::conformance::elements::Table;
use crate::conformance::host::{Host, Notify, Queue, QueueOptions, next_request};
use offmap_abi::admin::QueueCreateBody;
use offmap_abi::regs::{self, DeviceStatus};
use offmap_abi::{AdminOpcode, IoOpcode, MapHandle, Status, Submission};
use offmap_device_io::{BarOffset, DmaRegion, Function, Iova};
use offmap_emulator::{DeviceConfig, Inline};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use zerocopy::FromZeros;
use zerocopy::little_endian::{U16, U32, U64};

/// Things that an input may do.
const MOST_BLOWS: u32 = 256;
const DATA_BYTES: usize = 16 << 10;

/// What an input came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Ran {
    /// Things done to the device.
    pub blows: u32,
    /// Commands that it answered.
    pub answered: u32,
    /// Whether it stopped itself.
    pub fatal: bool,
}

struct Rig {
    host: Host<Inline>,
    queues: Vec<Queue<Inline>>,
    map: MapHandle,
    data: DmaRegion<Inline>,
    data_mapped: bool,
}

/// A host as `input` says. Nothing may panic or hang; and in the end, after one reset, the device
/// works and holds what it is given.
pub fn device(input: &[u8]) -> Ran {
    let mut bytes = Bytes::new(input);
    let mut config = DeviceConfig::default();
    config.firmware.memory_bytes = 1 << 20;
    config.firmware.maps = 16;
    config.queue_pairs = 8;
    config.vectors = 4;
    let Ok(function) = Inline::new(config) else {
        return Ran::default();
    };
    let host = Host::bring_up(function);
    let options = |notify| QueueOptions { notify, vector: 1 };
    let queues = vec![
        host.queue(1, 8, options(Notify::Shadow)),
        host.queue(2, 8, options(Notify::Doorbells)),
    ];
    let (map_type, key, value) =
        [(1, 8, 64), (2, 4, 64), (9, 8, 64), (11, 8, 64), (22, 0, 64)][usize::from(bytes.u8()) % 5];
    let map = host.map(&Host::<Inline>::map_body(map_type, key, value, 32));
    let _irq = host.vector(1);
    let data = host.dma(DATA_BYTES);
    let mut rig = Rig {
        host,
        queues,
        map,
        data,
        data_mapped: true,
    };
    let mut ran = Ran::default();
    while !bytes.is_over() && ran.blows < MOST_BLOWS {
        rig.blow(&mut bytes);
        ran.blows += 1;
        for queue in &mut rig.queues {
            while queue.in_flight() > 0 && queue.poll().is_some() {
                ran.answered += 1;
            }
        }
    }
    let function = Arc::clone(rig.host.function());
    for _ in 0..64 {
        function.progress();
    }
    let status = function.read32(0, BarOffset(regs::STATUS));
    let status = DeviceStatus::from_bits_retain(status.unwrap_or(0));
    ran.fatal = status.contains(DeviceStatus::FATAL);
    rig.afterwards();
    ran
}

impl Rig {
    fn blow(&mut self, bytes: &mut Bytes<'_>) {
        let function = Arc::clone(self.host.function());
        let which = usize::from(bytes.u8()) % self.queues.len();
        match bytes.u8() % 20 {
            0..=6 => {
                let entry = self.entry(bytes);
                let queue = &mut self.queues[which];
                if queue.in_flight() < queue.depth() {
                    queue.push(entry);
                    if bytes.u8() < 240 {
                        queue.publish();
                    }
                }
            }
            7 => {
                let entry = self.admin_entry(bytes);
                self.host.admin_unanswered(entry);
            }
            8 => {
                // Anything in a ring.
                let ring = self.queues[which].ring();
                let at = bytes.below(ring.len() / 8) * 8;
                ring.store_u64(at, bytes.word(), Ordering::Release);
            }
            9 => self.queues[which].publish_tail(bytes.word()),
            10 => self.queues[which].publish_head(bytes.word()),
            11 | 12 => register(&function, bytes),
            13 => {
                let offset = (bytes.below(4200)) as u16;
                let mut buf = bytes.u64().to_le_bytes();
                let len = usize::from(bytes.u8() % 9);
                if bytes.u8() & 1 == 0 {
                    let _ = function.config_write(offset, &buf[..len]);
                } else {
                    let _ = function.config_read(offset, &mut buf[..len]);
                }
            }
            14 => {
                let iova = self.data.iova(0);
                let done = if self.data_mapped {
                    function.dma_unmap(iova, DATA_BYTES)
                } else {
                    function.dma_map(self.data.buffer(), iova)
                };
                assert!(done.is_ok(), "{done:?}");
                self.data_mapped = !self.data_mapped;
            }
            15 => {
                // A mapping where none can be, or on another one.
                let _ = function.dma_map(self.data.buffer(), Iova(bytes.word()));
            }
            16 if bytes.u8() < 8 => drop(function.reset()),
            _ => {
                for _ in 0..bytes.u8() % 32 {
                    function.progress();
                }
            }
        }
        function.progress();
    }

    /// An IOVA: of data, of a ring or of a notify block, near them, or any.
    fn iova(&self, bytes: &mut Bytes<'_>) -> u64 {
        let base = match bytes.u8() {
            0..=127 => self.data.iova(0).0,
            128..=223 => {
                let queue = &self.queues[usize::from(bytes.u8()) % self.queues.len()];
                let of = queue.iovas();
                of[usize::from(bytes.u8()) % of.len()]
            }
            _ => return bytes.word(),
        };
        base.wrapping_add(bytes.below(DATA_BYTES) as u64)
            .wrapping_sub(u64::from(bytes.u8() & 1) * 64)
    }

    /// A command, often close to a right one.
    fn entry(&self, bytes: &mut Bytes<'_>) -> Submission {
        let opcode = IoOpcode(match bytes.u8() {
            odd @ 0..=31 => odd,
            pick => [0, 1, 2, 3, 4, 5, 6, 0x11, 0x12, 0x13, 0x14, 0x15][usize::from(pick) % 12],
        });
        let mut words = Submission::new(opcode.0, next_request(), &[0u8; 48]).to_words(false);
        if opcode.is_batch() {
            // Flags and count, lengths, three arrays, a cursor.
            words[2] = u64::from(bytes.u8() % 4) | (bytes.word() & 0xffff) << 32;
            words[3] = 8 | 64 << 32;
            words[4] = self.iova(bytes);
            words[5] = self.iova(bytes);
            words[6] = self.iova(bytes);
            words[7] = u64::from(bytes.u8() % 40);
        } else {
            words[0] |= u64::from(bytes.u8() & 3) << 8;
            words[2] = u64::from(bytes.u8() % 3) | 8 << 32;
            words[3] = 64;
            words[4] = if bytes.u8() & 1 == 0 {
                u64::from(bytes.u8() % 40)
            } else {
                self.iova(bytes)
            };
            words[6] = self.iova(bytes);
        }
        if bytes.u8() < 96 {
            words[usize::from(bytes.u8() % 8)] = bytes.word();
        }
        let entry = Submission::from_words(words);
        if bytes.u8() < 230 {
            entry.with_map(self.map)
        } else {
            entry
        }
    }

    /// A command for the admin queue; a queue over rings of others among them.
    fn admin_entry(&self, bytes: &mut Bytes<'_>) -> Submission {
        let opcodes = [1, 2, 2, 3, 0x10, 0x11, 0x12, 0x13, 0x20];
        let opcode = AdminOpcode(opcodes[usize::from(bytes.u8()) % opcodes.len()]);
        if opcode == AdminOpcode::QueueCreate && bytes.u8() < 224 {
            let mut body = QueueCreateBody::new_zeroed();
            body.queue = U16::new(3 + u16::from(bytes.u8() % 6));
            body.depth = U32::new(2 << (bytes.u8() % 4));
            body.vector = U32::new(u32::from(bytes.u8() % 5));
            body.sq = U64::new(self.iova(bytes) & !0xfff);
            body.cq = U64::new(self.iova(bytes) & !0xfff);
            body.notify = U64::new(self.iova(bytes) & !0x3f);
            return Submission::new(opcode.0, next_request(), &body);
        }
        let mut words = Submission::new(opcode.0, next_request(), &[0u8; 48]).to_words(false);
        for word in &mut words[2..] {
            *word = match bytes.u8() {
                0..=63 => self.iova(bytes),
                _ => bytes.word(),
            };
        }
        if opcode == AdminOpcode::MapCreate && bytes.u8() < 192 {
            words[2] = u64::from(bytes.u8() % 32) | 8 << 32;
            words[3] = 8 | u64::from(bytes.u8()) << 32;
            words[4] = 0;
            words[7] = 0;
        }
        Submission::from_words(words).with_map(self.map)
    }

    /// The mappings of the input go with it; a device after a reset is as good as new.
    fn afterwards(self) {
        let Self {
            host,
            queues,
            data,
            data_mapped,
            ..
        } = self;
        if !data_mapped {
            let function = host.function();
            assert!(function.dma_map(data.buffer(), data.iova(0)).is_ok());
        }
        drop(queues);
        let host = host.reset();
        host.identify();
        let options = QueueOptions {
            notify: Notify::Shadow,
            vector: regs::NO_VECTOR,
        };
        let mut queue = host.queue(1, 4, options);
        let map = host.map(&Host::<Inline>::map_body(1, 8, 8, 8));
        let mut table = Table::new(&host, &mut queue, map, (8, 8), 1);
        assert_eq!(table.update(&[1; 8], &[2; 8], 0), Status::Success);
        assert_eq!(table.lookup(&[1; 8]), Ok(vec![2; 8]));
    }
}

/// An access to a BAR, of either width, at any offset.
fn register(function: &Inline, bytes: &mut Bytes<'_>) {
    let bar = bytes.u8() % 7;
    let offset = match bytes.u8() {
        0..=127 => u64::from(bytes.u8()),
        128..=159 => regs::DOORBELLS + u64::from(bytes.u8()) * 8,
        160..=191 => regs::MSIX_TABLE + u64::from(bytes.u8()) * 4,
        192..=223 => regs::MSIX_PBA + u64::from(bytes.u8()),
        _ => bytes.word(),
    };
    let offset = BarOffset(offset);
    match bytes.u8() % 4 {
        0 => drop(function.read32(bar, offset)),
        1 => drop(function.read64(bar, offset)),
        2 => drop(function.write32(bar, offset, bytes.word() as u32)),
        _ => drop(function.write64(bar, offset, bytes.word())),
    }
}
