//! The answers.

use crate::filter::{LINK_CREATE, PROG_BIND_MAP, PROG_LOAD};
use crate::host::Host;
use crate::kernel::{self, create, put, u32_at, u64_at};
use crate::memory::{ATTR_BYTES, Call, Replace, ShownId, Target, Written};
use crate::objects::{Btf, Files, Ours, Seen, What, lock, mode_of_flags};
use crate::sys::{self, Answer, Notification};
use crate::{Choice, Counts, Event, Rules, program};
use offmap_bpf::command as c;
use offmap_bpf::{Caller, Errno, Error, Fd, MapFlags, MapType, NetNs, UserMemory};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// Offsets of descriptors in attributes.
const FD_FIRST: usize = 0;
const FD_OF_PIN: usize = 8;
const FD_OF_BATCH: usize = 36;
const FD_OF_BIND: usize = 4;
/// Offsets in the attribute of LINK_CREATE, and `BPF_TRACE_ITER`.
const ATTACH_TYPE: usize = 8;
const ITER_INFO: usize = 16;
const ITER_INFO_LEN: usize = 24;
const TRACE_ITER: u32 = 28;
/// Offsets in the attribute of a batch.
const BATCH_VALUES: usize = 24;
const BATCH_COUNT: usize = 32;
/// Values of a batch that are looked at at a time.
const PIECE: u32 = 1024;
/// Offsets in the attribute of an element's command, and of OBJ_GET_INFO_BY_FD.
const KEY: usize = 8;
const VALUE: usize = 16;
const INFO: usize = 8;
/// Offsets in `struct bpf_map_info`.
mod info {
    pub(super) const ID: usize = 4;
    pub(super) const IFINDEX: usize = 40;
    pub(super) const NETNS_DEV: usize = 48;
    pub(super) const NETNS_INO: usize = 56;
    pub(super) const BTF_ID: usize = 64;
}

/// How a call ends.
enum Outcome {
    Answer(Answer),
    /// It returns a descriptor of this file.
    File(OwnedFd),
}

/// What is counted.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) answered: AtomicU64,
    pub(crate) passed_on: AtomicU64,
    pub(crate) maps: AtomicU64,
}

impl Counters {
    /// The counts so far.
    pub(crate) fn counts(&self) -> Counts {
        Counts {
            answered: self.answered.load(Ordering::Relaxed),
            passed_on: self.passed_on.load(Ordering::Relaxed),
            maps: self.maps.load(Ordering::Relaxed),
        }
    }
}

/// Whoever answers one program's calls; any number of threads may.
pub(crate) struct Supervisor {
    pub(crate) host: Arc<Host>,
    pub(crate) listener: OwnedFd,
    /// Index of each device's interface for the program.
    pub(crate) indexes: Vec<u32>,
    pub(crate) netns: NetNs,
    pub(crate) rules: Rules,
    pub(crate) counters: Counters,
    pub(crate) report: Box<dyn Fn(&Event) + Send + Sync>,
}

impl Supervisor {
    /// Answers one call.
    ///
    /// # Errors
    ///
    /// Those of the listener: no call can be answered any more.
    pub(crate) fn handle(&self, notification: &Notification) -> io::Result<()> {
        let outcome = match self.outcome(notification) {
            Ok(outcome) => outcome,
            Err(error) => {
                let command = notification.args[0] as u32 & !c::COMMON_ATTRS;
                let told = [c::MAP_CREATE, PROG_LOAD, PROG_BIND_MAP, LINK_CREATE];
                if told.contains(&command) {
                    (self.report)(&Event::Refused {
                        tid: notification.tid,
                        command,
                        error: error.clone(),
                    });
                }
                Outcome::Answer(Answer::Fails(error.errno().0))
            }
        };
        let counter = match outcome {
            Outcome::Answer(Answer::Continue) => &self.counters.passed_on,
            _ => &self.counters.answered,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        match outcome {
            Outcome::Answer(answer) => sys::answer(&self.listener, notification.id, answer),
            Outcome::File(file) => {
                let given = sys::give(&self.listener, notification.id, file.as_fd());
                // Before the program goes on: when it closes its own, that is the last one.
                drop(file);
                let answer = match given {
                    Ok(number) => Answer::Value(number.into()),
                    Err(error) => Answer::Fails(error.raw_os_error().unwrap_or(libc::EMFILE)),
                };
                sys::answer(&self.listener, notification.id, answer)
            }
        }
    }

    fn outcome(&self, notification: &Notification) -> Result<Outcome, Error> {
        const PASS: Result<Outcome, Error> = Ok(Outcome::Answer(Answer::Continue));
        let [number, attr_at, size, common, common_size, _] = notification.args;
        let (number, size) = (number as u32, size as u32);
        let command = number & !c::COMMON_ATTRS;
        let mut attr = [0; ATTR_BYTES];
        let head = (size as usize).min(ATTR_BYTES);
        let target = Target {
            tid: notification.tid,
        };
        // What is wrong with the attribute itself the kernel says.
        if size > 4096 {
            return PASS;
        }
        if let Err(fault) = target.read(attr_at, &mut attr[..head]) {
            if command == c::MAP_CREATE && fault.address == attr_at {
                (self.report)(&Event::Unreadable {
                    tid: notification.tid,
                });
            }
            return PASS;
        }
        let call = Asked {
            id: notification.id,
            target,
            number,
            attr_at,
            size,
            head,
            common,
            common_size: common_size as u32,
        };
        match command {
            c::MAP_CREATE => self.map_create(notification, &call, &mut attr),
            c::MAP_LOOKUP_ELEM
            | c::MAP_UPDATE_ELEM
            | c::MAP_DELETE_ELEM
            | c::MAP_GET_NEXT_KEY
            | c::MAP_LOOKUP_AND_DELETE_ELEM
            | c::MAP_FREEZE
            | c::OBJ_GET_INFO_BY_FD => self.on_fd(notification, &call, &mut attr, FD_FIRST),
            c::MAP_LOOKUP_BATCH
            | c::MAP_LOOKUP_AND_DELETE_BATCH
            | c::MAP_UPDATE_BATCH
            | c::MAP_DELETE_BATCH => self.on_fd(notification, &call, &mut attr, FD_OF_BATCH),
            c::OBJ_PIN => self.pin(notification, &call, &mut attr),
            PROG_LOAD => self.prog_load(&call, &attr),
            PROG_BIND_MAP => match self.see(&call, u32_at(&attr, FD_OF_BIND))? {
                Seen::Ours(ours, ..) => Err(self.unreachable(&ours, "PROG_BIND_MAP")),
                _ => PASS,
            },
            LINK_CREATE => match self.iterated(&call, &attr)? {
                Some(ours) => Err(self.unreachable(&ours, "LINK_CREATE of an iterator")),
                None => PASS,
            },
            c::OBJ_GET
            | c::MAP_GET_NEXT_ID
            | c::MAP_GET_FD_BY_ID
            | c::BTF_LOAD
            | c::BTF_GET_FD_BY_ID
            | c::BTF_GET_NEXT_ID
                if self.host.objects.files() == Files::Memory =>
            {
                self.host.objects.collect();
                self.opens(notification, &call, &mut attr, command)
            }
            _ => PASS,
        }
    }

    fn see(&self, call: &Asked, fd: u32) -> Result<Seen, Error> {
        self.host.objects.see(call.target.tid, fd as i32)
    }

    /// The map of ours that an iterator is to be over.
    fn iterated(&self, call: &Asked, attr: &[u8; ATTR_BYTES]) -> Result<Option<Arc<Ours>>, Error> {
        if u32_at(attr, ATTACH_TYPE) != TRACE_ITER || u32_at(attr, ITER_INFO_LEN) < 4 {
            return Ok(None);
        }
        let mut raw = [0; 4];
        if call.target.read(u64_at(attr, ITER_INFO), &mut raw).is_err() {
            return Ok(None);
        }
        match self.see(call, u32::from_ne_bytes(raw))? {
            Seen::Ours(ours, ..) => Ok(Some(ours)),
            _ => Ok(None),
        }
    }

    /// A program of the kernel cannot get at a map of ours.
    fn unreachable(&self, ours: &Ours, what: &str) -> Error {
        Error::because(
            Errno::EINVAL,
            format!(
                "{what}: the map {:?} lives on the emulated NIC, which programs of this host's kernel cannot reach; \
                 only bpf(2) of this process tree is answered by offmap",
                ours.what.name
            ),
        )
    }

    /// Has the bpf layer carry out a call.
    fn answer(
        &self,
        notification: &Notification,
        call: &Asked,
        attr: &mut [u8; ATTR_BYTES],
        replace: Replace<'_>,
    ) -> Result<i32, Error> {
        // The thread may have died while its memory was looked at, and its number be another's.
        if !sys::is_waiting(&self.listener, notification.id) {
            return Err(Error::new(Errno::EINTR, "the caller has died"));
        }
        let memory = Call::new(call.target, call.attr_at, &attr[..call.head], replace);
        self.host.system.bpf_common(
            &self.caller(),
            &memory,
            call.number,
            call.attr_at,
            call.size,
            call.common,
            call.common_size,
        )
    }

    /// The devices are this user's own: nothing about them needs a privilege.
    fn caller(&self) -> Caller {
        Caller::root()
    }

    /// A command on a descriptor at `at` in the attribute.
    fn on_fd(
        &self,
        notification: &Notification,
        call: &Asked,
        attr: &mut [u8; ATTR_BYTES],
        at: usize,
    ) -> Result<Outcome, Error> {
        let command = call.number & !c::COMMON_ATTRS;
        let (ours, fd, file) = match self.see(call, u32_at(attr, at))? {
            Seen::Ours(ours, fd, file) => (ours, fd, file),
            Seen::Kernels(kind, _) if holds_maps(MapType(kind)) => {
                let (at, count) = match command {
                    c::MAP_UPDATE_ELEM => (VALUE, 1),
                    c::MAP_UPDATE_BATCH => (BATCH_VALUES, u32_at(attr, BATCH_COUNT)),
                    _ => return Ok(Outcome::Answer(Answer::Continue)),
                };
                return self.update_of_kernels(call, u64_at(attr, at), count);
            }
            _ => return Ok(Outcome::Answer(Answer::Continue)),
        };
        put(attr, at, fd.0 as u32);
        let shown_id = |id| self.host.objects.shown_id(id);
        let mut replace = match ours.what.holds_maps {
            true => self.values_of_maps(call, attr, command, &shown_id)?,
            false => Replace::default(),
        };
        if command == c::OBJ_GET_INFO_BY_FD {
            replace.written = Some((u64_at(attr, INFO), Written::Fields(self.shown(&ours))));
        }
        let value = self.answer(notification, call, attr, replace)?;
        if ours.what.holds_maps && command != c::OBJ_GET_INFO_BY_FD {
            let key_size = self.host.system.info(fd).map_or(0, |info| info.key_size);
            self.keep_inner(call, attr, command, &ours, key_size as usize)?;
        }
        if command == c::MAP_FREEZE && self.host.objects.files() == Files::Kernel {
            // So that /proc shows it. Where the map that stands for it was made otherwise, ours
            // is frozen all the same.
            let _ = kernel::freeze(&file);
        }
        Ok(Outcome::Answer(Answer::Value(value.into())))
    }

    /// What of a map's information is the program's view: ids, and the interface.
    fn shown(&self, ours: &Ours) -> Vec<(usize, Vec<u8>)> {
        let mut fields = Vec::new();
        if let Some((id, btf_id)) = ours.ids {
            fields.push((info::ID, id.to_ne_bytes().to_vec()));
            fields.push((info::BTF_ID, btf_id.to_ne_bytes().to_vec()));
        }
        if let Some(&index) = ours.device.and_then(|device| self.indexes.get(device)) {
            fields.push((info::IFINDEX, index.to_ne_bytes().to_vec()));
            fields.push((info::NETNS_DEV, self.netns.dev.to_ne_bytes().to_vec()));
            fields.push((info::NETNS_INO, self.netns.ino.to_ne_bytes().to_vec()));
        }
        fields
    }

    /// An update of a map of maps of the kernel's must not put one of ours into it.
    fn update_of_kernels(&self, call: &Asked, values: u64, count: u32) -> Result<Outcome, Error> {
        let mut done = 0;
        while done < count {
            let piece = (count - done).min(PIECE);
            let mut raw = vec![0; piece as usize * 4];
            let at = values.wrapping_add(u64::from(done) * 4);
            if call.target.read(at, &mut raw).is_err() {
                // What the kernel says of that, it says.
                break;
            }
            for value in raw.chunks_exact(4) {
                if let Seen::Ours(ours, ..) = self.see(call, u32_at(value, 0))? {
                    return Err(not_in_kernels(&ours));
                }
            }
            done += piece;
        }
        Ok(Outcome::Answer(Answer::Continue))
    }

    /// What stands for the maps in a map of maps lives as long as they are in there.
    fn keep_inner(
        &self,
        call: &Asked,
        attr: &[u8; ATTR_BYTES],
        command: u32,
        ours: &Ours,
        key_size: usize,
    ) -> Result<(), Error> {
        if self.host.files() != Files::Kernel {
            return Ok(());
        }
        let mut key = vec![0; key_size];
        if call.target.read(u64_at(attr, KEY), &mut key).is_err() {
            return Ok(());
        }
        match command {
            c::MAP_UPDATE_ELEM => {
                let mut raw = [0; 4];
                if call.target.read(u64_at(attr, VALUE), &mut raw).is_ok()
                    && let Seen::Ours(_, _, file) = self.see(call, u32::from_ne_bytes(raw))?
                {
                    lock(&ours.inner).insert(key, file);
                }
            }
            c::MAP_DELETE_ELEM | c::MAP_LOOKUP_AND_DELETE_ELEM => {
                lock(&ours.inner).remove(&key);
            }
            _ => {}
        }
        Ok(())
    }

    /// The value of a map of maps is a descriptor where it is written, and an id where it is read.
    fn values_of_maps<'a>(
        &self,
        call: &Asked,
        attr: &[u8; ATTR_BYTES],
        command: u32,
        shown_id: &'a ShownId<'a>,
    ) -> Result<Replace<'a>, Error> {
        let value = u64_at(attr, VALUE);
        let mut replace = Replace::default();
        match command {
            c::MAP_UPDATE_ELEM => {
                let mut raw = [0; 4];
                if call.target.read(value, &mut raw).is_ok() {
                    // What is no map of ours is no descriptor of the bpf layer's.
                    let inner = match self.see(call, u32::from_ne_bytes(raw))? {
                        Seen::Ours(_, fd, _) => fd.0,
                        _ => -1,
                    };
                    replace.read = vec![(value, inner.to_ne_bytes().to_vec())];
                }
            }
            c::MAP_LOOKUP_ELEM | c::MAP_LOOKUP_AND_DELETE_ELEM => {
                replace.written = Some((value, Written::Id(shown_id)));
            }
            c::MAP_LOOKUP_BATCH
            | c::MAP_LOOKUP_AND_DELETE_BATCH
            | c::MAP_UPDATE_BATCH
            | c::MAP_DELETE_BATCH => {
                return Err(Error::new(
                    Errno::ENOTSUPP,
                    "offmap run has no batches on maps of maps: their values are descriptors",
                ));
            }
            _ => {}
        }
        Ok(replace)
    }

    /// OBJ_PIN.
    fn pin(
        &self,
        notification: &Notification,
        call: &Asked,
        attr: &mut [u8; ATTR_BYTES],
    ) -> Result<Outcome, Error> {
        let Seen::Ours(_, fd, _) = self.see(call, u32_at(attr, FD_OF_PIN))? else {
            return Ok(Outcome::Answer(Answer::Continue));
        };
        match self.host.objects.files() {
            Files::Kernel => {
                self.host.pinned.store(true, Ordering::Relaxed);
                Ok(Outcome::Answer(Answer::Continue))
            }
            Files::Memory => {
                put(attr, FD_OF_PIN, fd.0 as u32);
                let value = self.answer(notification, call, attr, Replace::default())?;
                Ok(Outcome::Answer(Answer::Value(value.into())))
            }
        }
    }

    /// PROG_LOAD: refused when the program refers to a map of ours.
    fn prog_load(&self, call: &Asked, attr: &[u8; ATTR_BYTES]) -> Result<Outcome, Error> {
        if self.host.objects.len() == 0 {
            return Ok(Outcome::Answer(Answer::Continue));
        }
        for (fd, at) in program::map_fds(call.target, attr) {
            if let Seen::Ours(ours, ..) = self.see(call, fd as u32)? {
                let what = match at {
                    Some(at) => format!("BPF_PROG_LOAD: instruction {at}"),
                    None => "BPF_PROG_LOAD: fd_array".to_owned(),
                };
                let error = self.unreachable(&ours, &what);
                // The number may be another thread's, once its call has ended.
                if !sys::is_waiting(&self.listener, call.id) {
                    return Err(error);
                }
                program::log(call.target, attr, &format!("{}\n", error.reason()));
                return Err(error);
            }
        }
        Ok(Outcome::Answer(Answer::Continue))
    }

    /// Commands that only the bpf layer answers, where the kernel does not know our objects.
    fn opens(
        &self,
        notification: &Notification,
        call: &Asked,
        attr: &mut [u8; ATTR_BYTES],
        command: u32,
    ) -> Result<Outcome, Error> {
        let value = self.answer(notification, call, attr, Replace::default())?;
        match command {
            c::MAP_GET_NEXT_ID | c::BTF_GET_NEXT_ID => {
                Ok(Outcome::Answer(Answer::Value(value.into())))
            }
            _ => self.give(Fd(value), None),
        }
    }

    /// A memfd for an open file of the bpf layer's.
    fn give(&self, fd: Fd, device: Option<usize>) -> Result<Outcome, Error> {
        let map = self.host.system.info(fd).ok();
        let kind = match map {
            Some(_) => "bpf-map",
            None => "btf",
        };
        let device = device.or_else(|| {
            let there = map.as_ref()?.offload.as_ref()?;
            let devices = &self.host.devices;
            devices.iter().position(|device| device.0 == there.ifindex)
        });
        let name = map.as_ref().map_or_else(String::new, |map| {
            let end = map.name.iter().position(|&byte| byte == 0);
            String::from_utf8_lossy(&map.name[..end.unwrap_or(map.name.len())]).into_owned()
        });
        let id = map.as_ref().map_or(0, |map| map.id);
        let holds_maps = map.as_ref().is_some_and(|map| holds_maps(map.map_type));
        let ours = Arc::new(Ours::new(
            &self.host.system,
            fd,
            0,
            id,
            None,
            device,
            What { name, holds_maps },
        ));
        self.host
            .objects
            .enter_file(ours, kind)
            .map(Outcome::File)
            .map_err(|error| {
                Error::because(
                    Errno::ENFILE,
                    format!("offmap cannot make a descriptor: {error}"),
                )
            })
    }

    /// The device that a new map goes to.
    fn chosen(&self, attr: &[u8; ATTR_BYTES]) -> Option<Choice> {
        let ifindex = u32_at(attr, create::IFINDEX);
        if ifindex != 0 {
            let device = self.indexes.iter().position(|&index| index == ifindex)?;
            return Some(Choice {
                device,
                asked: true,
            });
        }
        let name = &attr[create::NAME..create::NAME + 16];
        let end = name.iter().position(|&byte| byte == 0).unwrap_or(16);
        self.rules.choose(&String::from_utf8_lossy(&name[..end]))
    }

    /// MAP_CREATE.
    fn map_create(
        &self,
        notification: &Notification,
        call: &Asked,
        attr: &mut [u8; ATTR_BYTES],
    ) -> Result<Outcome, Error> {
        let memory = self.host.objects.files() == Files::Memory;
        // What was closed before this call has made room for the new map.
        self.host.objects.collect();
        self.host.system.flush_frees();
        let choice = self.chosen(attr);
        let Some(Choice { device, asked }) = choice else {
            let kind = MapType(u32_at(attr, 0));
            if !memory || u32_at(attr, create::IFINDEX) != 0 {
                if holds_maps(kind)
                    && let Seen::Ours(ours, ..) =
                        self.see(call, u32_at(attr, create::INNER_MAP_FD))?
                {
                    return Err(not_in_kernels(&ours));
                }
                return Ok(Outcome::Answer(Answer::Continue));
            }
            let flags = MapFlags::from_bits_retain(u32_at(attr, create::FLAGS));
            if let Some(why) = refused(kind, flags) {
                return Err(Error::because(Errno::EINVAL, why));
            }
            // The kernel would refuse: a map of the bpf layer, in this process.
            self.translate_btf(call, attr)?;
            if holds_maps(kind) {
                let inner = match self.see(call, u32_at(attr, create::INNER_MAP_FD))? {
                    Seen::Ours(_, fd, _) => fd.0 as u32,
                    _ => u32::MAX,
                };
                put(attr, create::INNER_MAP_FD, inner);
            }
            let fd = self.answer(notification, call, attr, Replace::default())?;
            return self.give(Fd(fd), None);
        };
        let (kind, flags) = (MapType(u32_at(attr, 0)), u32_at(attr, create::FLAGS));
        let flags = MapFlags::from_bits_retain(flags);
        if let Some(why) = refused(kind, flags) {
            let error = Error::because(Errno::EINVAL, why);
            if asked {
                return Err(error);
            }
            (self.report)(&Event::LeftToKernel {
                tid: notification.tid,
                error,
            });
            return Ok(Outcome::Answer(Answer::Continue));
        }
        let original = *attr;
        put(attr, create::IFINDEX, self.host.devices[device].0);
        let btf = self.translate_btf(call, attr)?;
        let inner = match holds_maps(kind) {
            false => None,
            true => match self.see(call, u32_at(attr, create::INNER_MAP_FD))? {
                Seen::Ours(_, fd, file) => {
                    put(attr, create::INNER_MAP_FD, fd.0 as u32);
                    Some(file)
                }
                other if asked => {
                    let (errno, what) = match other {
                        Seen::Closed => (Errno::EBADF, "is not open"),
                        _ => (
                            Errno::EINVAL,
                            "is no map on the NIC, and the maps in one on the NIC are",
                        ),
                    };
                    let number = u32_at(attr, create::INNER_MAP_FD) as i32;
                    let why = format!("inner_map_fd {number} {what}");
                    return Err(Error::because(errno, why));
                }
                _ => return Ok(Outcome::Answer(Answer::Continue)),
            },
        };
        let made = self.answer(notification, call, attr, Replace::default());
        let fd = match made {
            Ok(fd) => Fd(fd),
            Err(error) if asked => return Err(error),
            Err(error) => {
                (self.report)(&Event::LeftToKernel {
                    tid: notification.tid,
                    error,
                });
                return Ok(Outcome::Answer(Answer::Continue));
            }
        };
        self.counters.maps.fetch_add(1, Ordering::Relaxed);
        if memory {
            return self.give(fd, Some(device));
        }
        let (btf_file, btf_id, btf) = btf.map_or((None, 0, None), |(file, id, btf)| {
            (Some(file), id, Some(btf))
        });
        let stand_in = kernel::stand_in(
            &original,
            btf_file.as_ref().map(AsFd::as_fd),
            inner.as_ref().map(AsFd::as_fd),
        );
        let made = stand_in
            .map_err(|error| error.to_string())
            .and_then(|file| match self.host.objects.kernel_id(&file) {
                Some(id) => Ok((file, id)),
                None => Err("it cannot be looked at".to_owned()),
            });
        let (file, id) = match made {
            Ok(made) => made,
            Err(why) => {
                let _ = self.host.system.close(fd);
                return Err(Error::because(
                    Errno::ENOMEM,
                    format!("the kernel makes no map that stands for the offloaded one: {why}"),
                ));
            }
        };
        let system_id = self.host.system.info(fd).map_or(0, |info| info.id);
        let name = &original[create::NAME..create::NAME + 16];
        let end = name.iter().position(|&byte| byte == 0).unwrap_or(16);
        let name = String::from_utf8_lossy(&name[..end]).into_owned();
        let ours = Ours::new(
            &self.host.system,
            fd,
            mode_of_flags(flags.bits()),
            system_id,
            Some((id, btf_id)),
            Some(device),
            What {
                name,
                holds_maps: holds_maps(kind),
            },
        );
        self.host.objects.enter_map(Arc::new(ours.typed(btf)));
        Ok(Outcome::File(file))
    }

    /// The program's BTF descriptor in an attribute of MAP_CREATE becomes the bpf layer's: the
    /// kernel's object that it is, and its id, where it has types at all.
    fn translate_btf(
        &self,
        call: &Asked,
        attr: &mut [u8; ATTR_BYTES],
    ) -> Result<Option<(OwnedFd, u32, Arc<Btf>)>, Error> {
        let number = u32_at(attr, create::BTF_FD);
        let typed = u32_at(attr, create::KEY_TYPE) | u32_at(attr, create::VALUE_TYPE);
        if typed == 0 {
            return Ok(None);
        }
        match self.see(call, number)? {
            Seen::Ours(_, fd, _) => {
                put(attr, create::BTF_FD, fd.0 as u32);
                Ok(None)
            }
            Seen::Other(file) | Seen::Kernels(_, file) => {
                let Ok((id, bytes)) = kernel::btf_bytes(&file) else {
                    // As the bpf layer answers for what is no BTF.
                    put(attr, create::BTF_FD, u32::MAX);
                    return Ok(None);
                };
                let mut known = lock(&self.host.btf);
                known.retain(|_, btf| btf.strong_count() != 0);
                let btf = match known.get(&id).and_then(Weak::upgrade) {
                    Some(btf) => btf,
                    None => {
                        let fd = self.host.system.btf_load(&self.caller(), &bytes)?;
                        let btf = Arc::new(Btf::new(&self.host.system, fd));
                        known.insert(id, Arc::downgrade(&btf));
                        btf
                    }
                };
                put(attr, create::BTF_FD, btf.fd.0 as u32);
                Ok(Some((file, id, btf)))
            }
            Seen::Closed => {
                put(attr, create::BTF_FD, u32::MAX);
                Ok(None)
            }
        }
    }
}

/// A map of ours cannot be in a map of maps of the kernel's.
fn not_in_kernels(ours: &Ours) -> Error {
    Error::because(
        Errno::EINVAL,
        format!(
            "the map {:?} lives on the emulated NIC and cannot be in a map of maps of the host's kernel",
            ours.what.name
        ),
    )
}

/// Whether the values of such maps are other maps.
fn holds_maps(kind: MapType) -> bool {
    matches!(kind, MapType::ARRAY_OF_MAPS | MapType::HASH_OF_MAPS)
}

/// Why a map of such a type or with such flags cannot be one of ours, although the device could
/// hold it: it is used by other system calls than bpf(2).
fn refused(kind: MapType, flags: MapFlags) -> Option<String> {
    let why = if kind == MapType::RINGBUF {
        "a ring buffer is read by mmap(2) and epoll(7)"
    } else if flags.contains(MapFlags::MMAPABLE) {
        "a map with BPF_F_MMAPABLE is used by mmap(2)"
    } else if flags.contains(MapFlags::TOKEN_FD) {
        "a map made with a BPF token is the kernel's"
    } else {
        return None;
    };
    Some(format!(
        "map_type {}: {why}, and offmap run answers bpf(2) only",
        kind.0
    ))
}

/// One call as it was made.
struct Asked {
    /// Names it to the kernel.
    id: u64,
    target: Target,
    /// The command, with BPF_COMMON_ATTRS where that was given.
    number: u32,
    attr_at: u64,
    size: u32,
    /// Bytes of the attribute that were copied.
    head: usize,
    common: u64,
    common_size: u32,
}
