//! A sequence of calls on a map, made from a workload file and a seed, or read from a file.

use super::{KeyDraw, MapShape, MixFile};
use crate::workload::{Kind, Zipf};
use rand::{Rng, RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use serde::Deserialize;
use std::io::{self, Read, Write};
use thiserror::Error;

/// Calls of a sequence that is made.
const CALLS: usize = 1 << 17;
/// What a file begins with.
const MAGIC: [u8; 8] = *b"offmapsq";
/// Version of the file.
const VERSION: u32 = 1;
/// Calls and keys that a file may have, at most.
const MOST: u32 = 64 << 20;
/// Bytes of a name, at most.
const NAME: u32 = 256;

/// A call on an element.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum CallOp {
    /// BPF_MAP_LOOKUP_ELEM.
    Lookup = 0,
    /// BPF_MAP_UPDATE_ELEM with BPF_ANY.
    Update = 1,
    /// BPF_MAP_UPDATE_ELEM with BPF_ANY, of the next key that comes into being.
    Insert = 2,
    /// BPF_MAP_DELETE_ELEM.
    Delete = 3,
    /// BPF_MAP_GET_NEXT_KEY.
    Next = 4,
}

impl CallOp {
    fn from_byte(byte: u8) -> Option<Self> {
        [
            Self::Lookup,
            Self::Update,
            Self::Insert,
            Self::Delete,
            Self::Next,
        ]
        .into_iter()
        .find(|op| *op as u8 == byte)
    }
}

/// A call with the number of its key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Call {
    /// The call.
    pub op: CallOp,
    /// Which key of [`Sequence::key`].
    pub key: u32,
}

/// What all back ends run through.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sequence {
    /// Its name.
    pub name: String,
    /// The map.
    pub map: MapShape,
    /// How many of the keys, the first ones, are stored before it begins.
    pub fill: usize,
    /// The calls, at least one.
    pub calls: Vec<Call>,
    keys: Vec<u8>,
}

/// Why a file is no sequence.
#[derive(Debug, Error)]
pub enum SequenceError {
    /// It cannot be read or written.
    #[error("it cannot be read or written: {0}")]
    Io(#[from] io::Error),
    /// It is something else.
    #[error("it is no sequence of calls of offmap, or one of another version")]
    Foreign,
    /// A field cannot be.
    #[error("{0}")]
    Field(String),
}

fn fields<const N: usize>(from: &mut impl Read) -> Result<[u32; N], SequenceError> {
    let mut fields = [0; N];
    for field in &mut fields {
        let mut bytes = [0; 4];
        from.read_exact(&mut bytes)?;
        *field = u32::from_le_bytes(bytes);
    }
    Ok(fields)
}

/// The bytes of key `n`, and of the key by which it is looked up.
fn key(file: &MixFile, start: u64, n: usize, bytes: &mut [u8], rng: &mut impl Rng) {
    let x = start
        .wrapping_add(n as u64)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ x >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    match file.map.map_type {
        Kind::Array => {
            let index = n % file.map.max_entries;
            bytes.copy_from_slice(&(index as u32).to_ne_bytes());
        }
        Kind::LpmTrie => {
            let total: u32 = file.keys.prefixes.iter().map(|(_, weight)| weight).sum();
            let mut at = rng.random_range(0..total.max(1));
            let mut bits = 32;
            for (len, weight) in &file.keys.prefixes {
                if at < *weight {
                    bits = *len;
                    break;
                }
                at -= weight;
            }
            let mask = u32::MAX << (32 - bits);
            bytes[..4].copy_from_slice(&bits.to_ne_bytes());
            bytes[4..].copy_from_slice(&(x as u32 & mask).to_be_bytes());
        }
        _ => {
            for (piece, at) in bytes.chunks_mut(8).zip(0u64..) {
                let word = x ^ at.wrapping_mul(0x2545_f491_4f6c_dd1d);
                piece.copy_from_slice(&word.to_le_bytes()[..piece.len()]);
            }
        }
    }
}

impl Sequence {
    /// The calls of a workload file, drawn from a seed. Of a trie twice as many keys are made: prefixes, and an
    /// address below each.
    pub fn new(file: &MixFile, seed: u64) -> Self {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let start = rng.next_u64();
        let size = file.map.key_size;
        let count = file.keys.count;
        let trie = file.map.map_type == Kind::LpmTrie;
        let mut keys = vec![0; count * size];
        for (n, bytes) in keys.chunks_exact_mut(size).enumerate() {
            key(file, start, n, bytes, &mut rng);
        }
        if trie {
            let mut below = keys.clone();
            for bytes in below.chunks_exact_mut(size) {
                let mut field = [0; 4];
                field.copy_from_slice(&bytes[..4]);
                let bits = u32::from_ne_bytes(field);
                field.copy_from_slice(&bytes[4..]);
                let rest = u32::MAX.checked_shr(bits).unwrap_or(0);
                let address = u32::from_be_bytes(field) | (rng.next_u32() & rest);
                bytes[..4].copy_from_slice(&32u32.to_ne_bytes());
                bytes[4..].copy_from_slice(&address.to_be_bytes());
            }
            keys.extend(below);
        }
        let zipf = Zipf::new(count, file.keys.exponent);
        let weights: u32 = file.calls.iter().map(|call| call.weight).sum();
        // The key that came into being last.
        let mut head = file.keys.fill.saturating_sub(1);
        let calls = (0..CALLS)
            .map(|_| {
                let mut at = rng.random_range(0..weights);
                let mut op = file.calls[0].op;
                for call in &file.calls {
                    op = call.op;
                    if at < call.weight {
                        break;
                    }
                    at -= call.weight;
                }
                let drawn = match file.keys.draw {
                    _ if op == CallOp::Insert => {
                        head = (head + 1) % count;
                        head
                    }
                    KeyDraw::Uniform => rng.random_range(0..count),
                    KeyDraw::Zipf => zipf.rank(&mut rng),
                    KeyDraw::Recent => (head + count - zipf.rank(&mut rng)) % count,
                };
                let below = trie && op == CallOp::Lookup;
                let key = if below { count + drawn } else { drawn };
                Call {
                    op,
                    key: key as u32,
                }
            })
            .collect();
        Self {
            name: file.name.clone(),
            map: file.map,
            fill: file.keys.fill,
            calls,
            keys,
        }
    }

    /// The bytes of a key.
    #[inline]
    pub fn key(&self, n: u32) -> &[u8] {
        &self.keys[n as usize * self.map.key_size..][..self.map.key_size]
    }

    /// Bytes of all keys.
    pub fn key_bytes(&self) -> usize {
        self.keys.len()
    }

    /// Writes it as a file: the header, all keys, then five bytes for each call (its number, and the number of its key),
    /// numbers in little-endian order.
    ///
    /// # Errors
    ///
    /// What writing fails with.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        to.write_all(&MAGIC)?;
        for field in [
            VERSION,
            self.map.map_type.number(),
            self.map.key_size as u32,
            self.map.value_size as u32,
            self.map.max_entries as u32,
            self.fill as u32,
            (self.keys.len() / self.map.key_size) as u32,
            self.calls.len() as u32,
            self.name.len() as u32,
        ] {
            to.write_all(&field.to_le_bytes())?;
        }
        to.write_all(self.name.as_bytes())?;
        to.write_all(&self.keys)?;
        for call in &self.calls {
            to.write_all(&[call.op as u8])?;
            to.write_all(&call.key.to_le_bytes())?;
        }
        Ok(())
    }

    /// Reads such a file, which may hold anything.
    ///
    /// # Errors
    ///
    /// [`SequenceError`], with what is wrong.
    pub fn read(from: &mut impl Read) -> Result<Self, SequenceError> {
        let mut magic = [0; 8];
        from.read_exact(&mut magic)?;
        let [version] = fields(from)?;
        if magic != MAGIC || version != VERSION {
            return Err(SequenceError::Foreign);
        }
        let [
            number,
            key_size,
            value_size,
            max_entries,
            fill,
            keys,
            calls,
            name,
        ] = fields(from)?;
        let field = |why: &str| SequenceError::Field(why.to_owned());
        let map_type = Kind::ALL
            .into_iter()
            .find(|kind| kind.number() == number)
            .ok_or_else(|| field("its map is of a type that is not measured here"))?;
        if !(4..=64).contains(&key_size) || !(1..=4096).contains(&value_size) {
            return Err(field(
                "keys have from 4 to 64 bytes, values from 1 to 4,096",
            ));
        }
        if max_entries == 0
            || max_entries > MOST
            || keys == 0
            || keys > MOST
            || calls == 0
            || calls > MOST
        {
            return Err(field(
                "it has no entries, keys or calls, or more than 64 Mi of them",
            ));
        }
        if fill > keys || name > NAME {
            return Err(field(
                "more keys are stored at first than it has, or its name is too long",
            ));
        }
        // As far as the file goes, and not as far as it says.
        let mut take = |bytes: u64| -> Result<Vec<u8>, SequenceError> {
            let mut read = Vec::new();
            from.by_ref().take(bytes).read_to_end(&mut read)?;
            match read.len() as u64 == bytes {
                true => Ok(read),
                false => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            }
        };
        let name =
            String::from_utf8(take(name.into())?).map_err(|_| field("its name is no text"))?;
        let bytes = take(u64::from(keys) * u64::from(key_size))?;
        let calls: Option<Vec<Call>> = take(u64::from(calls) * 5)?
            .chunks_exact(5)
            .map(|call| {
                let key = u32::from_le_bytes([call[1], call[2], call[3], call[4]]);
                let op = CallOp::from_byte(call[0])?;
                (key < keys).then_some(Call { op, key })
            })
            .collect();
        Ok(Self {
            name,
            map: MapShape {
                map_type,
                key_size: key_size as usize,
                value_size: value_size as usize,
                max_entries: max_entries as usize,
            },
            fill: fill as usize,
            calls: calls
                .ok_or_else(|| field("a call is none, or names a key that is not there"))?,
            keys: bytes,
        })
    }
}
