//! The batch commands: `bpf_map_do_batch`, and the loops of `generic_map_*_batch` and
//! `__htab_map_lookup_and_delete_batch` as far as they touch user memory.
//!
//! A batch may name four thousand million elements, so it is carried out in pieces that fit a
//! buffer. Pieces are cut so that nobody can tell: where the caller's arrays can be reached as
//! a whole they are large; otherwise each is what the kernel copies at a time (an element, or
//! for hash maps a bucket), so that a fault finds the map as the kernel would have left it.

use super::elements::buffer;
use super::{Call, command};
use crate::device::{BatchOutcome, OffloadCommands};
use crate::errno::Errno;
use crate::error::Result;
use crate::file::MapFile;
use crate::map::ops::Token;
use crate::system::Fd;
use crate::uapi::MapType;

/// Offsets in the attribute of the batch commands.
const IN_BATCH: usize = 0;
const OUT_BATCH: usize = 8;
const KEYS: usize = 16;
const VALUES: usize = 24;
const COUNT: usize = 32;
const MAP_FD: usize = 36;
const ELEM_FLAGS: usize = 40;
const FLAGS: usize = 48;

/// Bytes of keys and values that a piece has, if an element is not larger.
const PIECE_BYTES: usize = 256 << 10;
/// What no bucket's number is: whether a walk wrote its token.
const NO_BUCKET: [u8; 4] = u32::MAX.to_ne_bytes();

/// The fields of a batch.
struct Batch {
    map: MapFile,
    keys: u64,
    values: u64,
    count: u32,
    elem_flags: u64,
    flags: u64,
}

impl Batch {
    fn key_address(&self, index: u32) -> u64 {
        let offset = u64::from(index).wrapping_mul(self.map.key_size() as u64);
        self.keys.wrapping_add(offset)
    }

    fn value_address(&self, index: u32) -> u64 {
        let offset = u64::from(index).wrapping_mul(self.map.value_bytes() as u64);
        self.values.wrapping_add(offset)
    }

    /// Elements of a large piece.
    fn piece(&self) -> u32 {
        let element = self.map.key_size() + self.map.value_bytes();
        (PIECE_BYTES / element.max(1)).clamp(1, 1 << 16) as u32
    }
}

impl Call<'_> {
    /// `bpf_map_do_batch`.
    pub(super) fn batch(&self, number: u32) -> Result<()> {
        self.check_end(number, FLAGS + 8)?;
        let map = self.system.raw_map(Fd(self.attr.i32(MAP_FD)))?;
        let command = match number {
            command::MAP_LOOKUP_BATCH => OffloadCommands::LOOKUP_BATCH,
            command::MAP_LOOKUP_AND_DELETE_BATCH => OffloadCommands::LOOKUP_AND_DELETE_BATCH,
            command::MAP_UPDATE_BATCH => OffloadCommands::UPDATE_BATCH,
            _ => OffloadCommands::DELETE_BATCH,
        };
        let walks = command
            .intersects(OffloadCommands::LOOKUP_BATCH | OffloadCommands::LOOKUP_AND_DELETE_BATCH);
        if walks {
            map.readable()?;
        }
        let _active = match command == OffloadCommands::LOOKUP_BATCH {
            true => None,
            false => Some(map.begin_write()?),
        };
        let batch = Batch {
            keys: self.attr.u64(KEYS),
            values: self.attr.u64(VALUES),
            count: self.attr.u32(COUNT),
            elem_flags: self.attr.u64(ELEM_FLAGS),
            flags: self.attr.u64(FLAGS),
            map: map.clone(),
        };
        // Only the walks of hash maps look at `flags`.
        let walk_flags = if walks { batch.flags } else { 0 };
        map.check_batch(command, batch.elem_flags, walk_flags)?;
        if batch.count == 0 {
            return Ok(());
        }
        self.put_count(0)?;
        if walks {
            return self.walk(&batch, command == OffloadCommands::LOOKUP_AND_DELETE_BATCH);
        }
        let has_values = command == OffloadCommands::UPDATE_BATCH;
        let (done, result) = self.store(&batch, has_values);
        self.put_count(done)?;
        result
    }

    fn put_count(&self, count: u32) -> Result<()> {
        self.attr.put_u32(self.memory, COUNT, count, "count")
    }

    /// `generic_map_update_batch` and, without values, `generic_map_delete_batch`: the elements
    /// done, and what ended it.
    fn store(&self, batch: &Batch, has_values: bool) -> (u32, Result<()>) {
        let mut done = 0;
        let mut piece = batch.piece();
        while done < batch.count {
            let count = piece.min(batch.count - done);
            let keys = self.elements(batch.key_address(done), batch.map.key_size(), count, "keys");
            let arrays = keys.and_then(|keys| {
                let values = match has_values {
                    true => {
                        let size = batch.map.value_bytes();
                        self.elements(batch.value_address(done), size, count, "values")?
                    }
                    false => Vec::new(),
                };
                Ok((keys, values))
            });
            let (keys, values) = match arrays {
                Ok(arrays) => arrays,
                // The elements before the one that cannot be read are done first.
                Err(error) if error.errno() == Errno::EFAULT && count > 1 => {
                    piece = 1;
                    continue;
                }
                Err(error) => return (done, Err(error)),
            };
            let outcome = match has_values {
                true => {
                    let flags = batch.elem_flags;
                    self.system
                        .update_map_batch(&batch.map, &keys, &values, count, flags)
                }
                false => batch
                    .map
                    .delete_batch(&keys, count, batch.elem_flags, batch.flags),
            };
            done += outcome.count.min(count);
            if let Err(error) = outcome.result {
                return (done, Err(error));
            }
        }
        (done, Ok(()))
    }

    fn elements(&self, address: u64, size: usize, count: u32, what: &str) -> Result<Vec<u8>> {
        self.copy_in(address, size * count as usize, what)
    }

    /// `generic_map_lookup_batch` and `__htab_map_lookup_and_delete_batch`.
    fn walk(&self, batch: &Batch, delete: bool) -> Result<()> {
        let map = &batch.map;
        let token_bytes = map.token_bytes();
        let in_buckets = map.token() == Token::Bucket;
        let mut token = match self.attr.u64(IN_BATCH) {
            0 => None,
            address => Some(self.copy_in(address, token_bytes, "in_batch")?),
        };
        let whole = |address, size| {
            let bytes = u64::from(batch.count).saturating_mul(size as u64);
            self.memory.is_writable(address, bytes)
        };
        let reachable = whole(batch.keys, map.key_size()) && whole(batch.values, map.value_bytes());
        let smallest = if reachable { batch.piece() } else { 1 };
        let mut piece = smallest;
        let mut total = 0;
        let mut out = buffer(token_bytes)?;
        let mut last = None;
        let ended = loop {
            let count = piece.min(batch.count - total);
            let mut keys = buffer(map.key_size() * count as usize)?;
            let mut values = buffer(map.value_bytes() * count as usize)?;
            if in_buckets {
                out.copy_from_slice(&NO_BUCKET);
            }
            let arrays = (&mut keys[..], &mut values[..]);
            let outcome = walk_once(batch, token.as_deref(), &mut out, arrays, count, delete);
            let got = outcome.count.min(count) as usize;
            self.copy_out(
                batch.key_address(total),
                &keys[..got * map.key_size()],
                "keys",
            )?;
            self.copy_out(
                batch.value_address(total),
                &values[..got * map.value_bytes()],
                "values",
            )?;
            total += got as u32;
            if got != 0 {
                last = Some(out.clone());
            } else if total != 0 && map.map_type() == MapType::ARRAY_OF_MAPS {
                // The kernel's walk has gone on over the empty entries to the array's last.
                let end = map.max_entries().saturating_sub(1);
                last = Some(end.to_ne_bytes().to_vec());
            }
            match outcome.result {
                // A bucket that does not fit this piece may fit a larger one. Towards a fault
                // the piece is to hold that bucket and no other: the kernel has taken out no
                // more than the bucket that it could not copy.
                Err(error) if error.errno() == Errno::ENOSPC && in_buckets => {
                    if count < batch.count - total {
                        piece = match reachable {
                            true => piece.saturating_mul(2),
                            false => piece.saturating_add(1),
                        };
                        continue;
                    }
                    break if total == 0 { Err(error) } else { Ok(()) };
                }
                Err(error) if error.errno() == Errno::ENOENT => {
                    if in_buckets && out == NO_BUCKET {
                        // A token past the last bucket: nothing is written but the count.
                        return Err(error);
                    }
                    break Err(error);
                }
                Err(error) => return Err(error),
                Ok(()) if total == batch.count || got == 0 => break Ok(()),
                Ok(()) => {}
            }
            token = Some(out.clone());
            piece = smallest;
        };
        // The generic walk leaves the token alone when it has returned nothing.
        if in_buckets {
            self.copy_out(self.attr.u64(OUT_BATCH), &out, "out_batch")?;
            self.put_count(total)?;
        } else {
            self.put_count(total)?;
            if let Some(last) = last {
                self.copy_out(self.attr.u64(OUT_BATCH), &last, "out_batch")?;
            }
        }
        ended
    }
}

fn walk_once(
    batch: &Batch,
    token: Option<&[u8]>,
    out: &mut [u8],
    arrays: (&mut [u8], &mut [u8]),
    count: u32,
    delete: bool,
) -> BatchOutcome {
    let (keys, values) = arrays;
    let (map, elem_flags, flags) = (&batch.map, batch.elem_flags, batch.flags);
    match delete {
        true => map.lookup_and_delete_batch(token, out, keys, values, count, elem_flags, flags),
        false => map.lookup_batch(token, out, keys, values, count, elem_flags, flags),
    }
}
