//! Which descriptors of the program are objects of ours, and how long those live.
//!
//! With [`Files::Kernel`] a small map of the kernel stands for each of ours. Its id is the map's, and
//! its descriptors, pins and references are what the program holds, so that the map lives for as
//! long as that one does; nobody tells when it goes, and it is looked for. With [`Files::Memory`] a
//! memfd stands for each open file of ours, and inotify tells when its last descriptor is closed.

use crate::kernel::{self, Kernel};
use crate::sys;
use offmap_bpf::{Caller, Errno, Error, Fd, MapFlags, System};
use rustix::fs::inotify;
use rustix::fs::{MemfdFlags, OFlags, fstat, memfd_create};
use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What stands for our objects in the program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Files {
    /// Small maps of the kernel: it needs the privileges to make them, and to see ids.
    Kernel,
    /// memfds.
    Memory,
}

/// Threads whose descriptors are remembered, at most: each is a descriptor of this process.
const THREADS: usize = 128;

/// A map of ours, or another object.
pub(crate) struct Ours {
    system: Arc<System>,
    /// Descriptors of the bpf layer: for reading and writing, only reading, only writing.
    fds: Mutex<[Option<Fd>; 3]>,
    /// Its id in the bpf layer; 0 where it is not needed.
    pub(crate) id: u32,
    /// Its id for the program, and that of its BTF; `None`: those of the bpf layer.
    pub(crate) ids: Option<(u32, u32)>,
    /// Which of the devices has it.
    pub(crate) device: Option<usize>,
    /// What it is.
    pub(crate) what: What,
    /// The kernel's object of its types, known to the bpf layer as long as a map has it.
    pub(crate) btf: Option<Arc<Btf>>,
    /// Of a map of maps: what stands for the maps in it, by key, so that those live as long as they
    /// are in there, although the program has closed them.
    pub(crate) inner: Mutex<HashMap<Vec<u8>, OwnedFd>>,
}

/// A BTF object of the kernel's, as the bpf layer has it.
pub(crate) struct Btf {
    system: Arc<System>,
    pub(crate) fd: Fd,
}

impl Btf {
    pub(crate) fn new(system: &Arc<System>, fd: Fd) -> Self {
        Self {
            system: Arc::clone(system),
            fd,
        }
    }
}

impl Drop for Btf {
    fn drop(&mut self) {
        // It is open: nobody else closes it.
        let _ = self.system.close(self.fd);
    }
}

/// What an object of ours is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct What {
    /// The map's name; empty for one without, and for BTF.
    pub(crate) name: String,
    /// Whether its values are other maps.
    pub(crate) holds_maps: bool,
}

impl Ours {
    /// A map or another object, with the descriptor that it was opened with.
    pub(crate) fn new(
        system: &Arc<System>,
        fd: Fd,
        mode: usize,
        id: u32,
        ids: Option<(u32, u32)>,
        device: Option<usize>,
        what: What,
    ) -> Self {
        let mut fds = [None; 3];
        fds[mode.min(2)] = Some(fd);
        let inner = Mutex::default();
        Self {
            system: Arc::clone(system),
            fds: Mutex::new(fds),
            id,
            ids,
            device,
            what,
            btf: None,
            inner,
        }
    }

    /// The same with types.
    pub(crate) fn typed(mut self, btf: Option<Arc<Btf>>) -> Self {
        self.btf = btf;
        self
    }

    /// The descriptor of the bpf layer for an access mode.
    fn fd(&self, mode: usize) -> Option<Fd> {
        let mut fds = self.fds.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = fds.get_mut(mode)?;
        if slot.is_none() {
            let flags = match mode {
                1 => MapFlags::RDONLY,
                2 => MapFlags::WRONLY,
                _ => MapFlags::empty(),
            };
            *slot = self
                .system
                .get_fd_by_id(&Caller::root(), self.id, flags)
                .ok();
        }
        *slot
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        let fds = self.fds.get_mut().unwrap_or_else(PoisonError::into_inner);
        for fd in fds.iter().flatten() {
            // It is open: nobody else closes it.
            let _ = self.system.close(*fd);
        }
    }
}

/// The index of an access mode, from `MapFlags` of a command that opens.
pub(crate) fn mode_of_flags(flags: u32) -> usize {
    match MapFlags::from_bits_retain(flags) & (MapFlags::RDONLY | MapFlags::WRONLY) {
        MapFlags::RDONLY => 1,
        MapFlags::WRONLY => 2,
        _ => 0,
    }
}

/// The same of an open file.
fn mode_of_file(file: &OwnedFd) -> usize {
    match rustix::fs::fcntl_getfl(file).map(|flags| flags & OFlags::RWMODE) {
        Ok(OFlags::WRONLY) => 2,
        Ok(OFlags::RDWR) | Err(_) => 0,
        Ok(_) => 1,
    }
}

/// What a descriptor of the program is.
pub(crate) enum Seen {
    /// An object of ours, and the bpf layer's descriptor of it.
    Ours(Arc<Ours>, Fd, OwnedFd),
    /// A map of the kernel's, of that type.
    Kernels(u32, OwnedFd),
    /// Something else.
    Other(OwnedFd),
    /// Nothing.
    Closed,
}

/// The objects, by what stands for them.
pub(crate) struct Objects {
    how: How,
    threads: Mutex<HashMap<i32, Arc<OwnedFd>>>,
    /// Held while what is gone is looked for and let go of: when that returns, all of it is.
    collecting: Mutex<()>,
}

enum How {
    /// By id.
    Kernel(Kernel, Mutex<HashMap<u32, Arc<Ours>>>),
    /// By inode of the memfd.
    Memory {
        inotify: OwnedFd,
        by_inode: Mutex<HashMap<u64, Open>>,
    },
}

/// A memfd that is open somewhere.
struct Open {
    ours: Arc<Ours>,
    watch: i32,
    /// The file system of the inode.
    device: u64,
    /// Open files of it: more than one where somebody opened it by /proc. `None`: events were lost, and
    /// it stays to the end.
    files: Option<u32>,
}

impl Objects {
    /// None yet. `files` chooses; `None`: maps of the kernel where it lets this process make them.
    ///
    /// # Errors
    ///
    /// The kernel's, where that was asked for.
    pub(crate) fn new(files: Option<Files>) -> io::Result<Self> {
        let kernel = match files {
            Some(Files::Memory) => None,
            Some(Files::Kernel) => Some(Kernel::probe()?),
            None => Kernel::probe().ok(),
        };
        let how = match kernel {
            Some(kernel) => How::Kernel(kernel, Mutex::default()),
            None => How::Memory {
                inotify: inotify::init(
                    inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK,
                )?,
                by_inode: Mutex::default(),
            },
        };
        Ok(Self {
            how,
            threads: Mutex::default(),
            collecting: Mutex::default(),
        })
    }

    /// What stands for objects.
    pub(crate) fn files(&self) -> Files {
        match self.how {
            How::Kernel(..) => Files::Kernel,
            How::Memory { .. } => Files::Memory,
        }
    }

    /// Objects that are known.
    pub(crate) fn len(&self) -> usize {
        match &self.how {
            How::Kernel(_, maps) => lock(maps).len(),
            How::Memory { by_inode, .. } => lock(by_inode).len(),
        }
    }

    fn thread(&self, tid: i32) -> io::Result<Arc<OwnedFd>> {
        if let Some(thread) = lock(&self.threads).get(&tid) {
            return Ok(Arc::clone(thread));
        }
        let (thread, is_threads) = sys::open_thread(tid)?;
        let thread = Arc::new(thread);
        // Where it is the whole process's, the thread's number says nothing about it later.
        if !is_threads {
            return Ok(thread);
        }
        let mut threads = lock(&self.threads);
        if threads.len() >= THREADS {
            threads.clear();
        }
        threads.insert(tid, Arc::clone(&thread));
        Ok(thread)
    }

    /// The open file that a thread has as `number`; `None`: it has none.
    ///
    /// # Errors
    ///
    /// It cannot be known: the call must not go on to the kernel, which would find what stands for a
    /// map.
    pub(crate) fn file(&self, tid: i32, number: i32) -> Result<Option<OwnedFd>, Error> {
        if number < 0 {
            return Ok(None);
        }
        let mut last = rustix::io::Errno::SRCH;
        for _ in 0..2 {
            let thread = match self.thread(tid) {
                Ok(thread) => thread,
                Err(error) => return Err(cannot_look(&error)),
            };
            match sys::file_of(&thread, number) {
                Ok(file) => return Ok(Some(file)),
                Err(rustix::io::Errno::BADF) => return Ok(None),
                // The number was another thread's before.
                Err(rustix::io::Errno::SRCH) => {
                    lock(&self.threads).remove(&tid);
                }
                Err(error) => last = error,
            }
        }
        Err(cannot_look(&last.into()))
    }

    /// What a thread's descriptor is.
    ///
    /// # Errors
    ///
    /// As [`Objects::file`].
    pub(crate) fn see(&self, tid: i32, number: i32) -> Result<Seen, Error> {
        let Some(file) = self.file(tid, number)? else {
            return Ok(Seen::Closed);
        };
        match &self.how {
            How::Kernel(kernel, maps) => {
                let Some(info) = kernel.map_info(&file) else {
                    return Ok(Seen::Other(file));
                };
                let ours = lock(maps).get(&info.id).cloned();
                match ours.map(|ours| (ours.fd(mode_of_file(&file)), ours)) {
                    Some((Some(fd), ours)) => Ok(Seen::Ours(ours, fd, file)),
                    Some((None, _)) => Err(Error::new(
                        Errno::EBADF,
                        "the map cannot be opened in the bpf layer",
                    )),
                    None => Ok(Seen::Kernels(info.map_type, file)),
                }
            }
            How::Memory { by_inode, .. } => {
                let Ok(stat) = fstat(&file) else {
                    return Ok(Seen::Other(file));
                };
                let ours = lock(by_inode)
                    .get(&stat.st_ino)
                    .filter(|open| open.device == stat.st_dev)
                    .map(|open| Arc::clone(&open.ours));
                let fd = ours.as_ref().and_then(|ours| {
                    let fds = lock(&ours.fds);
                    fds.iter().flatten().next().copied()
                });
                match (ours, fd) {
                    (Some(ours), Some(fd)) => Ok(Seen::Ours(ours, fd, file)),
                    _ => Ok(Seen::Other(file)),
                }
            }
        }
    }

    /// What a file of this process is, as for a descriptor of the program: its id in the kernel.
    pub(crate) fn kernel_id(&self, file: &OwnedFd) -> Option<u32> {
        match &self.how {
            How::Kernel(kernel, _) => kernel.map_info(file).map(|info| info.id),
            How::Memory { .. } => None,
        }
    }

    /// Whether that id is of a map of ours.
    pub(crate) fn has(&self, id: u32) -> bool {
        match &self.how {
            How::Kernel(_, maps) => lock(maps).contains_key(&id),
            How::Memory { .. } => false,
        }
    }

    /// The kernel's id of a map that has `id` in the bpf layer; `id` where those are the same.
    pub(crate) fn shown_id(&self, id: u32) -> Option<u32> {
        match &self.how {
            How::Memory { .. } => Some(id),
            How::Kernel(_, maps) => {
                let maps = lock(maps);
                let found = maps.values().find(|ours| ours.id == id)?;
                found.ids.map(|(id, _)| id)
            }
        }
    }

    /// Enters a map that `ids` names in the kernel.
    pub(crate) fn enter_map(&self, ours: Arc<Ours>) {
        if let (How::Kernel(_, maps), Some((id, _))) = (&self.how, ours.ids) {
            lock(maps).insert(id, ours);
        }
    }

    /// A memfd for an open file of ours, entered.
    ///
    /// # Errors
    ///
    /// EMFILE and the like, of this process.
    pub(crate) fn enter_file(&self, ours: Arc<Ours>, name: &str) -> io::Result<OwnedFd> {
        let How::Memory { inotify, by_inode } = &self.how else {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        };
        let file = memfd_create(name, MemfdFlags::CLOEXEC)?;
        let stat = fstat(&file)?;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        // Before the watch is there nobody else can have it.
        let mut open = lock(by_inode);
        let watch = inotify::add_watch(
            inotify,
            path,
            inotify::WatchFlags::OPEN
                | inotify::WatchFlags::CLOSE_WRITE
                | inotify::WatchFlags::CLOSE_NOWRITE,
        )?;
        open.insert(
            stat.st_ino,
            Open {
                ours,
                watch,
                device: stat.st_dev,
                files: Some(1),
            },
        );
        Ok(file)
    }

    /// Lets go of what nobody has any more. The maps among it may be freed a little later
    /// ([`System::flush_frees`]).
    pub(crate) fn collect(&self) {
        let _collecting = lock(&self.collecting);
        match &self.how {
            How::Kernel(_, maps) => {
                let ids: Vec<u32> = lock(maps).keys().copied().collect();
                for id in ids {
                    if !kernel::map_lives(id) {
                        let gone = lock(maps).remove(&id);
                        // The device is told without the table being held.
                        drop(gone);
                    }
                }
            }
            How::Memory { inotify, by_inode } => {
                let mut space = [MaybeUninit::<u8>::uninit(); 4096];
                let mut events = inotify::Reader::new(inotify, &mut space);
                while let Ok(event) = events.next() {
                    let mut open = lock(by_inode);
                    if event.events().contains(inotify::ReadFlags::QUEUE_OVERFLOW) {
                        // Nobody knows any more how often they are open.
                        open.values_mut().for_each(|open| open.files = None);
                        continue;
                    }
                    let found = open.iter_mut().find(|(_, open)| open.watch == event.wd());
                    let Some((&inode, entry)) = found else {
                        continue;
                    };
                    entry.files = match event.events().contains(inotify::ReadFlags::OPEN) {
                        true => entry.files.map(|files| files + 1),
                        false => entry.files.map(|files| files.saturating_sub(1)),
                    };
                    let gone = match entry.files {
                        Some(0) => open.remove(&inode),
                        _ => None,
                    };
                    drop(open);
                    drop(gone);
                }
            }
        }
    }
}

/// A descriptor could not be looked at.
fn cannot_look(error: &io::Error) -> Error {
    Error::because(
        Errno(error.raw_os_error().unwrap_or(libc::EIO)),
        format!("offmap cannot look at the program's descriptors: {error}"),
    )
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
