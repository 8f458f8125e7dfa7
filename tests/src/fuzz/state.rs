//! The file of `offmap nic --state`, with whatever somebody put into it.

use super::bytes::Bytes;
use crate::conformance::elements::Table;
use crate::conformance::host::{Host, Notify, QueueOptions};
use crate::served::SocketFolder;
use offmap_abi::MapHandle;
use offmap_abi::regs::NO_VECTOR;
use offmap_emulator::{Device, DeviceConfig, Inline, Threaded};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::Path;
use std::sync::OnceLock;

/// Bytes of the file's header, and of the sum at its end.
const HEADER_BYTES: usize = 24;
const SUM_BYTES: usize = 32;
/// Maps of a restored device that are looked at.
const MOST_MAPS: usize = 8;

/// What an input came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Ran {
    /// The device was built from it.
    pub restored: bool,
    /// Maps that it had then.
    pub maps: usize,
    /// Elements that commands found in them.
    pub elements: usize,
}

fn config() -> DeviceConfig {
    let mut config = DeviceConfig::default();
    config.firmware.memory_bytes = 1 << 18;
    config.firmware.maps = 16;
    config.keep_maps = true;
    config
}

const OPTIONS: QueueOptions = QueueOptions {
    notify: Notify::Doorbells,
    vector: NO_VECTOR,
};

/// A good state: a map of each kind of storage, with something in them.
fn good() -> &'static [u8] {
    static GOOD: OnceLock<Vec<u8>> = OnceLock::new();
    GOOD.get_or_init(|| {
        let device = Inline::new(config()).expect("a device");
        let host = Host::bring_up(std::sync::Arc::clone(&device));
        let mut queue = host.queue(1, 8, OPTIONS);
        for (map_type, key, value) in [(1, 8, 16), (2, 4, 16), (9, 8, 16), (11, 8, 16)] {
            let map = host.map(&Host::<Inline>::map_body(map_type, key, value, 8));
            let mut table = Table::new(&host, &mut queue, map, (key as usize, value as usize), 1);
            for n in 0..4_u8 {
                let mut key = vec![0; key as usize];
                key[0] = n;
                // An LPM key begins with its length.
                let _ = table.update(&key, &vec![n; value as usize], 0);
            }
        }
        let folder = SocketFolder::new();
        let path = folder.socket();
        device.save(&path).expect("it lives").expect("it is saved");
        fs::read(&path).expect("a state")
    })
}

/// A file as `input` says: the bytes as they are, or a good state with some of them changed, whose length and
/// sum are right again, or not. It is refused with a sentence, or the device works: it answers commands on
/// the maps that it has, and its state can be saved and restored. Nothing may panic or hang.
pub fn state(input: &[u8]) -> Ran {
    let mut bytes = Bytes::new(input);
    let how = bytes.u8();
    let mut file = match how & 3 {
        0 => input.get(1..).unwrap_or_default().to_vec(),
        _ => {
            let mut file = good().to_vec();
            while !bytes.is_over() {
                // Near the start are the numbers that all else hangs on.
                let among = if bytes.u8() & 1 == 0 { 512 } else { file.len() };
                let at = bytes.below(among.min(file.len()));
                match bytes.u8() {
                    0 => file.truncate(at.max(HEADER_BYTES + SUM_BYTES)),
                    1 => file.insert(at, bytes.u8()),
                    2 => {
                        let word = bytes.word().to_le_bytes();
                        let end = (at + 8).min(file.len());
                        file[at..end].copy_from_slice(&word[..end - at]);
                    }
                    _ => file[at] = bytes.u8(),
                }
            }
            file
        }
    };
    if how & 4 != 0 && file.len() >= HEADER_BYTES + SUM_BYTES {
        seal(&mut file);
    }
    let folder = SocketFolder::new();
    let path = folder.socket();
    fs::write(&path, &file).expect("a file");
    let Ok(device) = Device::restore(&config(), &path) else {
        return Ran::default();
    };
    again(&device, &path);
    let mut ran = Ran {
        restored: true,
        ..Ran::default()
    };
    let device = Threaded::start(device, 64).expect("a thread");
    let host = Host::bring_up(device);
    let mut queue = host.queue(1, 8, OPTIONS);
    let maps = host.list(4);
    ran.maps = maps.len();
    for map in maps.iter().take(MOST_MAPS) {
        let slots = u64::from(map.cpu_slots.get().max(1));
        let value = u64::from(map.value_size.get()).next_multiple_of(8) * slots;
        let (Ok(key), Ok(value @ 0..=65_536)) =
            (u16::try_from(map.key_size.get()), usize::try_from(value))
        else {
            continue;
        };
        let sizes = (usize::from(key), value);
        let mut table = Table::new(&host, &mut queue, MapHandle(map.map.get()), sizes, 1);
        let mut at: Option<Vec<u8>> = None;
        // A map of which the file lies may have a walk without an end.
        for _ in 0..16 {
            let Ok(next) = table.next(at.as_deref()) else {
                break;
            };
            ran.elements += usize::from(table.lookup(&next).is_ok());
            at = Some(next);
        }
        let _ = table.update(&vec![1; sizes.0], &vec![1; sizes.1], 0);
        let _ = table.delete(&vec![1; sizes.0]);
    }
    ran
}

/// Makes the length and the sum right.
fn seal(file: &mut [u8]) {
    let state = file.len() - HEADER_BYTES - SUM_BYTES;
    file[16..HEADER_BYTES].copy_from_slice(&(state as u64).to_le_bytes());
    let mut sum = Sha256::new();
    sum.update(&file[HEADER_BYTES..HEADER_BYTES + state]);
    sum.update(&file[..HEADER_BYTES]);
    file[HEADER_BYTES + state..].copy_from_slice(&sum.finalize());
}

/// What was restored can be saved, and that can be restored.
fn again(device: &Device, path: &Path) {
    device.save(path).expect("it is saved");
    let restored = Device::restore(&config(), path);
    assert!(restored.is_ok(), "{:?}", restored.err());
}
