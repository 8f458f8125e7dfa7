//! Walking a map's entries from Rust, page by page.
//!
//! A loop of GET_NEXT_KEY and LOOKUP_ELEM costs two round trips to a device for each entry. An
//! [`Entries`] asks for a page of them at a time, as BPF_MAP_LOOKUP_BATCH does.

use crate::device::OffloadCommands;
use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::{MapFile, MapType};

const EMPTY_PAGE: Error = Error::new(Errno::EINVAL, "a page of entries has at least one");

/// A key and its value, as user space sees it: of a per-CPU map the values of all CPUs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry<'e> {
    /// [`MapFile::key_size`] bytes.
    pub key: &'e [u8],
    /// [`MapFile::value_bytes`] bytes.
    pub value: &'e [u8],
}

/// The entries of a map, in its own order; made by [`MapFile::entries`].
///
/// **What a walk sees.** Each key that is in the map from the first call to the last comes at least
/// once, and once exactly while nobody inserts keys. A key that is inserted or deleted meanwhile, by
/// the caller or by others, may come or not. Where a map is walked entry by entry, the deletion of the
/// key that was returned last begins the walk again, as BPF_MAP_GET_NEXT_KEY does, so that keys come
/// twice.
///
/// **How old an entry may be.** An entry was in the map when its page was asked for, which was the
/// last time that [`Entries::next_entry`] had used up the page before; a write by a data path or by
/// another system since then does not show in that page. An update or deletion by this system (any call
/// on any file of the map, other than a store to a mapping) that had returned before the call shows:
/// from the first such write on, what is left of the page is looked up again, entry by entry.
#[derive(Debug)]
pub struct Entries<'f> {
    file: &'f MapFile,
    keys: Vec<u8>,
    values: Vec<u8>,
    /// The page: those up to `at` were returned.
    count: usize,
    at: usize,
    /// Where the next page begins.
    token: Option<Vec<u8>>,
    /// Writes that had ended when the page was asked for.
    writes: u32,
    /// The map is read entry by entry.
    single: bool,
    ended: bool,
}

impl MapFile {
    /// Walks the map's entries, `page` at a time: as many as one descriptor of a device brings. Where
    /// the map has no batch lookup, and for LPM tries, whose keys cannot be looked up exactly, it goes
    /// entry by entry.
    ///
    /// # Errors
    ///
    /// EINVAL for a page of none. What reading the map can say is said by
    /// [`Entries::next_entry`], such as EPERM for a file that is open for writing only.
    pub fn entries(&self, page: u32) -> Result<Entries<'_>> {
        if page == 0 {
            return Err(EMPTY_PAGE);
        }
        let single = self.map_type() == MapType::LPM_TRIE
            || !self.commands().contains(OffloadCommands::LOOKUP_BATCH);
        // There is no use in a page of more than all.
        let page = match single {
            true => 1,
            false => page.min(self.max_entries().max(1)) as usize,
        };
        Ok(Entries {
            file: self,
            keys: vec![0; page * self.key_size()],
            values: vec![0; page * self.value_bytes()],
            count: 0,
            at: 0,
            token: None,
            writes: 0,
            single,
            ended: false,
        })
    }
}

impl Entries<'_> {
    /// The next entry; `None` at the end, and from then on.
    ///
    /// # Errors
    ///
    /// Those of BPF_MAP_LOOKUP_BATCH, other than its ENOENT and ENOSPC. After an error the call may be
    /// repeated.
    pub fn next_entry(&mut self) -> Result<Option<Entry<'_>>> {
        loop {
            if self.at == self.count {
                if self.ended {
                    return Ok(None);
                }
                match self.single {
                    true => self.fetch_one()?,
                    false => self.fetch_page()?,
                }
                continue;
            }
            let (key, value) = (self.file.key_size(), self.file.value_bytes());
            let at = self.at;
            if !self.single && self.file.writes_ended() != self.writes {
                let value = &mut self.values[at * value..][..value];
                match self.file.lookup(&self.keys[at * key..][..key], value, 0) {
                    Ok(()) => {}
                    Err(error) if error.errno() == Errno::ENOENT => {
                        self.at += 1;
                        continue;
                    }
                    Err(error) => return Err(error),
                }
            }
            self.at += 1;
            return Ok(Some(Entry {
                key: &self.keys[at * key..][..key],
                value: &self.values[at * value..][..value],
            }));
        }
    }

    fn fetch_page(&mut self) -> Result<()> {
        let mut next = vec![0; self.file.token_bytes()];
        loop {
            // Before the page: a write that ends meanwhile may be missing from it.
            self.writes = self.file.writes_ended();
            let room = self.keys.len() / self.file.key_size();
            let outcome = self.file.lookup_batch(
                self.token.as_deref(),
                &mut next,
                &mut self.keys,
                &mut self.values,
                room as u32,
                0,
                0,
            );
            match outcome.result {
                Ok(()) => {}
                Err(error) if error.errno() == Errno::ENOENT => self.ended = true,
                // A bucket that is larger than the page.
                Err(error) if error.errno() == Errno::ENOSPC => {
                    let most = self.file.max_entries() as usize;
                    if room >= most {
                        return Err(error);
                    }
                    let room = (room * 2).min(most);
                    self.keys.resize(room * self.file.key_size(), 0);
                    self.values.resize(room * self.file.value_bytes(), 0);
                    continue;
                }
                Err(error) => return Err(error),
            }
            (self.at, self.count) = (0, outcome.count as usize);
            self.token = Some(next);
            return Ok(());
        }
    }

    /// The next key and its value, by two calls. A key that goes between the two is passed over.
    fn fetch_one(&mut self) -> Result<()> {
        let mut next = vec![0; self.file.key_size()];
        loop {
            self.writes = self.file.writes_ended();
            match self.file.get_next_key(self.token.as_deref(), &mut next) {
                Ok(()) => {}
                Err(error) if error.errno() == Errno::ENOENT => {
                    self.ended = true;
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
            self.token = Some(next.clone());
            match self.file.lookup(&next, &mut self.values, 0) {
                Ok(()) => {}
                Err(error) if error.errno() == Errno::ENOENT => continue,
                Err(error) => return Err(error),
            }
            self.keys.copy_from_slice(&next);
            (self.at, self.count) = (0, 1);
            // It is as fresh as it can be.
            return Ok(());
        }
    }
}
