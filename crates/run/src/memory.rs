//! The memory of the program, as bpf(2) reaches it.

use crate::sys;
use offmap_bpf::{Fault, UserMemory};

/// Bytes of an attribute that are copied at once: `sizeof(union bpf_attr)` of 6.18.
pub(crate) const ATTR_BYTES: usize = 168;

/// The memory of one thread's process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) tid: i32,
}

impl UserMemory for Target {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Fault> {
        let mut done = 0;
        // A transfer ends at the first page that is not there; the rest says whether it is.
        while done < into.len() {
            let at = address.wrapping_add(done as u64);
            match sys::read_memory(self.tid, at, &mut into[done..]) {
                0 => return Err(Fault { address: at }),
                bytes => done += bytes,
            }
        }
        Ok(())
    }

    fn write(&self, address: u64, from: &[u8]) -> Result<(), Fault> {
        let mut done = 0;
        while done < from.len() {
            let at = address.wrapping_add(done as u64);
            match sys::write_memory(self.tid, at, &from[done..]) {
                0 => return Err(Fault { address: at }),
                bytes => done += bytes,
            }
        }
        Ok(())
    }

    fn is_writable(&self, address: u64, len: u64) -> bool {
        let Some(end) = address.checked_add(len) else {
            return false;
        };
        let Ok(maps) = std::fs::read_to_string(format!("/proc/{}/maps", self.tid)) else {
            return false;
        };
        // The mappings come in order.
        let mut from = address;
        for line in maps.lines() {
            let mut fields = line.split_ascii_whitespace();
            let range = fields.next().and_then(|range| range.split_once('-'));
            let Some((first, last)) = range else {
                continue;
            };
            let number = |hex| u64::from_str_radix(hex, 16).unwrap_or(0);
            let (first, last) = (number(first), number(last));
            if last <= from {
                continue;
            }
            let writable = fields.next().is_some_and(|mode| mode.contains('w'));
            if from >= end || first > from || !writable {
                break;
            }
            from = last;
        }
        from >= end
    }
}

/// What is different from the program's memory while the bpf layer carries out a call.
#[derive(Default)]
pub(crate) struct Replace<'a> {
    /// What is read at these addresses.
    pub(crate) read: Vec<(u64, Vec<u8>)>,
    /// What becomes of what is written to this address.
    pub(crate) written: Option<(u64, Written<'a>)>,
}

/// The id by which the program knows the map that has this one in the bpf layer.
pub(crate) type ShownId<'a> = dyn Fn(u32) -> Option<u32> + Sync + 'a;

/// What becomes of bytes that are written.
pub(crate) enum Written<'a> {
    /// At these offsets stands something else.
    Fields(Vec<(usize, Vec<u8>)>),
    /// They are the id of a map in the bpf layer, and the program gets to see another.
    Id(&'a ShownId<'a>),
}

/// The memory of the program, but the attribute is the copy that was looked at, with descriptors
/// of the bpf layer in place of the program's: another thread may write to the attribute
/// meanwhile.
pub(crate) struct Call<'a> {
    target: Target,
    attr_at: u64,
    attr: &'a [u8],
    replace: Replace<'a>,
}

impl<'a> Call<'a> {
    pub(crate) fn new(target: Target, attr_at: u64, attr: &'a [u8], replace: Replace<'a>) -> Self {
        Self {
            target,
            attr_at,
            attr,
            replace,
        }
    }
}

impl UserMemory for Call<'_> {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Fault> {
        let offset = address.wrapping_sub(self.attr_at);
        let offset = usize::try_from(offset).ok();
        if let Some(own) = offset.and_then(|offset| self.attr.get(offset..))
            && !own.is_empty()
        {
            let copied = into.len().min(own.len());
            into[..copied].copy_from_slice(&own[..copied]);
            let rest = address.wrapping_add(copied as u64);
            return self.target.read(rest, &mut into[copied..]);
        }
        let other = self.replace.read.iter().find(|(at, _)| *at == address);
        match other {
            Some((_, bytes)) if bytes.len() == into.len() => into.copy_from_slice(bytes),
            _ => return self.target.read(address, into),
        }
        Ok(())
    }

    fn write(&self, address: u64, from: &[u8]) -> Result<(), Fault> {
        let written = self
            .replace
            .written
            .as_ref()
            .filter(|(at, _)| *at == address);
        match written {
            None => self.target.write(address, from),
            Some((_, Written::Fields(fields))) => {
                let mut bytes = from.to_vec();
                for (at, field) in fields {
                    // A structure that is cut off has what fits of them.
                    let Some(room) = bytes.len().checked_sub(*at) else {
                        continue;
                    };
                    let len = field.len().min(room);
                    bytes[*at..*at + len].copy_from_slice(&field[..len]);
                }
                self.target.write(address, &bytes)
            }
            Some((_, Written::Id(shown))) => match <[u8; 4]>::try_from(from) {
                Ok(raw) => {
                    // A map that goes in this moment has no id any more.
                    let id = shown(u32::from_ne_bytes(raw)).unwrap_or(0);
                    self.target.write(address, &id.to_ne_bytes())
                }
                Err(_) => self.target.write(address, from),
            },
        }
    }

    fn is_writable(&self, address: u64, len: u64) -> bool {
        self.target.is_writable(address, len)
    }
}
