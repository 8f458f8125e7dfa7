//! `offmap nic --state`: maps that outlive the client and the process, seen through the wire.

use offmap_abi::admin::{MapAttr, MapDescription};
use offmap_abi::regs::{self, NO_VECTOR};
use offmap_abi::ringbuf::memory_bytes;
use offmap_abi::{IoOpcode, MapHandle, MapType, Status};
use offmap_device_io::DmaRegion;
use offmap_driver::{Driver, DriverConfig, MapParams};
use offmap_emulator::DeviceConfig;
use offmap_tests::command::offmap;
use offmap_tests::conformance::elements::Table;
use offmap_tests::conformance::host::{Host, Notify, Queue, QueueOptions};
use offmap_tests::served::{PATIENCE, ServerThread, SocketFolder, attach};
use offmap_vfio_user::VfioUser;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

/// A NIC in a process, with a state.
struct Nic {
    child: Option<Child>,
    socket: PathBuf,
}

fn command(folder: &SocketFolder, state: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(offmap());
    command.args(["nic", "--memory", "8M", "--maps", "100", "--socket"]);
    command
        .arg(folder.socket())
        .arg("--state")
        .arg(state)
        .args(more);
    command.stdin(Stdio::null()).stderr(Stdio::piped());
    command
}

impl Nic {
    #[track_caller]
    fn start(folder: &SocketFolder, state: &Path) -> Self {
        let mut child = command(folder, state, &[])
            .spawn()
            .expect("offmap nic starts");
        let (socket, started) = (folder.socket(), Instant::now());
        while UnixStream::connect(&socket).is_err() {
            let ended = child.try_wait().expect("the child can be asked");
            assert!(ended.is_none(), "offmap nic has ended: {ended:?}");
            assert!(started.elapsed() < PATIENCE, "no socket");
            thread::sleep(Duration::from_millis(2));
        }
        Self {
            child: Some(child),
            socket,
        }
    }

    fn id(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// SIGTERM; what it said.
    #[track_caller]
    fn stop(self) -> String {
        self.stop_with(0)
    }

    /// The same, with the status that it ends with.
    #[track_caller]
    fn stop_with(mut self, code: i32) -> String {
        let child = self.child.take().expect("it runs");
        let pid = Pid::from_raw(child.id() as i32).expect("a process id");
        kill_process(pid, Signal::TERM).expect("it can be told");
        let out = child.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(code), "{said}");
        said
    }
}

impl Drop for Nic {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

type Listed = (MapHandle, MapDescription);
/// Keys with values, by map.
type Contents = BTreeMap<u32, Vec<(Vec<u8>, Vec<u8>)>>;

fn queue(host: &Host<VfioUser>) -> Queue<VfioUser> {
    let options = QueueOptions {
        notify: Notify::Shadow,
        vector: NO_VECTOR,
    };
    host.queue(1, 16, options)
}

/// Key and value bytes of a map as they travel.
fn sizes(map: &MapDescription) -> (usize, usize) {
    let value = map.value_size.get() as usize;
    let value = match map.cpu_slots.get() {
        0 => value,
        slots => value.next_multiple_of(8) * slots as usize,
    };
    (map.key_size.get() as usize, value)
}

/// Makes a map of each type, and fills them to different degrees.
fn make(host: &Host<VfioUser>) {
    let mut queue = queue(host);
    let room = host.dma(4096);
    let mut inner = None;
    for map_type in MapType::ALL {
        let (key, value) = match *map_type {
            MapType::Array | MapType::PercpuArray => (4, 40),
            MapType::ArrayOfMaps | MapType::HashOfMaps => (4, 4),
            MapType::LpmTrie => (12, 40),
            MapType::BloomFilter => (20, 0),
            MapType::Queue | MapType::Stack => (0, 40),
            // It goes with its host.
            MapType::Ringbuf => continue,
            _ => (20, 40),
        };
        let mut body = Host::<VfioUser>::map_body(map_type.0, key, value, 300);
        if matches!(
            *map_type,
            MapType::PercpuHash | MapType::PercpuArray | MapType::LruPercpuHash
        ) {
            body.cpu_slots = U32::new(5);
        }
        let mut attr = MapAttr::default();
        attr.name[..4].copy_from_slice(format!("m{:03}", map_type.0).as_bytes());
        let of_maps = matches!(*map_type, MapType::ArrayOfMaps | MapType::HashOfMaps);
        let held: MapHandle = *inner.get_or_insert_with(|| {
            let like = Host::<VfioUser>::map_body(MapType::Hash.0, 4, 8, 10);
            let held = host.map(&like);
            let mut table = Table::new(host, &mut queue, held, (4, 8), 1);
            assert_eq!(table.update(&[1; 4], &[2; 8], 0), Status::Success);
            held
        });
        if of_maps {
            attr.inner_map = U32::new(held.0);
        }
        room.buffer().write(0, attr.as_bytes());
        body.attr = U64::new(room.iova(0).0);
        body.attr_len = U32::new(size_of::<MapAttr>() as u32);
        let map = host.map(&body);
        let (key, value) = sizes(
            &host
                .list(64)
                .into_iter()
                .find(|m| m.map.get() == map.0)
                .expect("it is listed"),
        );
        let mut table = Table::new(host, &mut queue, map, (key, value), 1);
        for n in 0..200_u32 {
            let mut k = vec![n as u8; key];
            match *map_type {
                MapType::Queue | MapType::Stack => {}
                MapType::LpmTrie => {
                    k[..4].copy_from_slice(&(n % 65).to_le_bytes());
                }
                _ => k[..4].copy_from_slice(&n.to_le_bytes()),
            }
            let v = match of_maps {
                true => held.0.to_le_bytes().to_vec(),
                false => (0..value).map(|i| (i as u32 * 3 + n) as u8).collect(),
            };
            assert_eq!(table.update(&k, &v, 0), Status::Success, "{map_type} {n}");
        }
    }
    // Freed and still held: no handle finds it, and it is there.
    assert_eq!(
        host.free(inner.expect("there was a map of maps")),
        Status::Success
    );
    assert_eq!(host.queue_delete(queue.id()), Status::Success);
}

/// Every entry of every map.
fn contents(host: &Host<VfioUser>) -> Contents {
    let mut queue = queue(host);
    let maps: Vec<Listed> = host
        .list(5)
        .into_iter()
        .map(|m| (MapHandle(m.map.get()), m))
        .collect();
    let mut all = BTreeMap::new();
    for (map, described) in maps {
        let (key, value) = sizes(&described);
        let mut table = Table::new(host, &mut queue, map, (key, value), 400);
        let mut found = Vec::new();
        match MapType(described.map_type.get()) {
            MapType::Queue | MapType::Stack => found.extend(table.lookup(&[]).map(|v| (vec![], v))),
            MapType::BloomFilter => {
                for n in 0..2000_u32 {
                    let mut k = vec![n as u8; key];
                    k[..4].copy_from_slice(&n.to_le_bytes());
                    found.push((k.clone(), vec![u8::from(table.lookup(&k).is_ok())]));
                }
            }
            _ => {
                for k in table.keys(400) {
                    let v = table.lookup(&k).unwrap_or_default();
                    found.push((k, v));
                }
            }
        }
        assert!(!found.is_empty(), "{described:?}");
        let entries = host.query(map).expect("it is there").entries.get();
        found.push((
            entries.to_le_bytes().to_vec(),
            described.as_bytes().to_vec(),
        ));
        all.insert(map.0, found);
    }
    assert_eq!(host.queue_delete(queue.id()), Status::Success);
    all
}

/// Takes a queue and a stack down to the ground, which shows all that they hold.
fn drain(host: &Host<VfioUser>) -> Vec<Vec<u8>> {
    let mut queue = queue(host);
    let mut all = Vec::new();
    for described in host.list(64) {
        if matches!(
            MapType(described.map_type.get()),
            MapType::Queue | MapType::Stack
        ) {
            let map = MapHandle(described.map.get());
            let mut table = Table::new(host, &mut queue, map, sizes(&described), 1);
            while let Ok(value) = table.take(&[]) {
                all.push(value);
            }
        }
    }
    assert_eq!(host.queue_delete(queue.id()), Status::Success);
    all
}

fn host(nic: &Nic) -> Host<VfioUser> {
    let host = Host::bring_up(Arc::new(attach(&nic.socket)));
    let features = host.features();
    assert!(features.contains(regs::Features::KEEPS_MAPS | regs::Features::MAP_LIST));
    host
}

#[test]
fn maps_are_the_same_for_the_next_client_and_in_the_next_process() {
    let folder = SocketFolder::new();
    let state = folder.socket().with_file_name("state");
    let nic = Nic::start(&folder, &state);
    let first = host(&nic);
    make(&first);
    let before = contents(&first);
    assert_eq!(
        before.len(),
        MapType::ALL.len() - 1,
        "one of each, without the ring"
    );
    let ring = ring(&first);
    assert_eq!(first.list(64).len(), before.len() + 1);
    drop((first, ring));
    let next = loop_attach(&nic);
    assert_eq!(contents(&next), before, "the next client");
    drop(next);
    let said = nic.stop();
    assert!(said.contains("the maps are saved to"), "{said}");
    let nic = Nic::start(&folder, &state);
    let after = host(&nic);
    assert_eq!(contents(&after), before, "the next process");
    let drained = drain(&after);
    assert_eq!(drained.len(), 400);
    let counts = (0..200_u32).chain((0..200).rev());
    for (value, n) in drained.iter().zip(counts) {
        assert_eq!(value[0], n as u8);
    }
    // A map of maps still reaches the map that only it holds, which another would not.
    let of_maps = after
        .list(64)
        .into_iter()
        .find(|m| m.map_type.get() == MapType::HashOfMaps.0);
    let of_maps = MapHandle(of_maps.expect("it is listed").map.get());
    let mut queue = queue(&after);
    let mut table = Table::new(&after, &mut queue, of_maps, (4, 4), 1);
    let held = table.keys(400)[0].clone();
    assert_eq!(table.delete(&held), Status::Success);
    let dump = table.batch(IoOpcode::BatchDump, 1, 0, 0);
    assert_ne!(table.queue.run(dump).status(), Status::Internal);
    // A reset frees them, as ever.
    let empty = after.reset();
    assert_eq!(empty.list(64), Vec::new());
    drop((empty, queue));
    nic.stop();
    let nic = Nic::start(&folder, &state);
    assert_eq!(host(&nic).list(64), Vec::new());
}

/// A ring buffer, which goes with the host that its memory belongs to.
fn ring(host: &Host<VfioUser>) -> DmaRegion<VfioUser> {
    let memory = host.dma((4096 + memory_bytes(4096)) as usize);
    let attr = MapAttr {
        host_memory: U64::new(memory.iova(4096).0),
        vector: U32::new(NO_VECTOR),
        ..MapAttr::default()
    };
    memory.buffer().write(0, attr.as_bytes());
    let mut body = Host::<VfioUser>::map_body(MapType::Ringbuf.0, 0, 0, 4096);
    body.attr = U64::new(memory.iova(0).0);
    body.attr_len = U32::new(size_of::<MapAttr>() as u32);
    host.map(&body);
    memory
}

/// The server takes a moment to see that a client has left.
fn loop_attach(nic: &Nic) -> Host<VfioUser> {
    thread::sleep(Duration::from_millis(200));
    host(nic)
}

#[test]
fn what_cannot_be_restored_is_refused_with_a_sentence() {
    let folder = SocketFolder::new();
    let state = folder.socket().with_file_name("state");
    let nic = Nic::start(&folder, &state);
    make(&host(&nic));
    nic.stop();
    let good = fs::read(&state).expect("the state is there");
    let refused = |bytes: &[u8], more: &[&str]| {
        fs::write(&state, bytes).expect("it can be written");
        let out: Output = command(&folder, &state, more).output().expect("it starts");
        assert_eq!(out.status.code(), Some(2), "{out:?}");
        String::from_utf8(out.stderr).expect("UTF-8")
    };
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] ^= byte;
        bytes
    };
    for (bytes, more, sentence) in [
        (good[..40].to_vec(), &[][..], "too short"),
        (
            good[..good.len() - 1].to_vec(),
            &[],
            "not as long as it says",
        ),
        ([&good[..], &[0]].concat(), &[], "not as long as it says"),
        (with(0, 1), &[], "no device's state"),
        (
            with(8, 1),
            &[],
            "version 2 of the format, and this offmap reads version 3",
        ),
        (with(100, 1), &[], "checksum"),
        (with(good.len() - 1, 1), &[], "checksum"),
        (
            good.clone(),
            &["--map-entries", "1000"],
            "saved with map entries 2147483648, and this device has 1000",
        ),
    ] {
        let said = refused(&bytes, more);
        assert!(
            said.contains(sentence) && said.contains("move it away"),
            "{sentence}: {said}"
        );
        assert_eq!(said.lines().count(), 1, "{said}");
        assert_eq!(
            fs::read(&state).expect("it is there"),
            bytes,
            "it is left alone"
        );
    }
    fs::write(&state, &good).expect("it can be written");
    drop(Nic::start(&folder, &state));
    assert_eq!(
        fs::read(&state).expect("it is there"),
        good,
        "a killed one saves nothing"
    );
    let left = fs::read_dir(state.parent().expect("a folder")).expect("it can be read");
    let left: Vec<_> = left
        .filter_map(|f| f.ok()?.file_name().into_string().ok())
        .collect();
    assert!(left.iter().all(|name| !name.ends_with(".new")), "{left:?}");
}

/// What a server says that does not serve.
#[track_caller]
fn refused(folder: &SocketFolder, state: &Path) -> String {
    let mut child = command(folder, state, &[]).spawn().expect("it starts");
    let started = Instant::now();
    while child.try_wait().expect("it can be asked").is_none() {
        if started.elapsed() > PATIENCE || folder.socket().exists() {
            let _ = child.kill();
            let _ = child.wait();
            panic!("it neither serves nor ends, or it serves {state:?}");
        }
        thread::sleep(Duration::from_millis(2));
    }
    let out = child.wait_with_output().expect("it has ended");
    assert_eq!(out.status.code(), Some(2), "{out:?}");
    let said = String::from_utf8(out.stderr).expect("UTF-8");
    assert_eq!(said.lines().count(), 1, "{said}");
    said
}

/// Names in a folder, without the socket and the lock.
fn names(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).expect("it can be read");
    let mut names: Vec<_> = names
        .map(|f| {
            let name = f.expect("an entry").file_name().into_string();
            name.expect("UTF-8")
        })
        .filter(|n| !n.ends_with(".sock") && !n.ends_with(".lock"))
        .collect();
    names.sort();
    names
}

#[test]
fn a_place_that_cannot_have_a_state_is_refused_before_anybody_is_served() {
    let folder = SocketFolder::new();
    let here = folder.socket().with_file_name("");
    let (fifo, round) = (here.join("fifo"), here.join("round"));
    mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a FIFO");
    symlink("round", &round).expect("a link");
    symlink("fifo", here.join("to-fifo")).expect("a link");
    let long = "n".repeat(255);
    for (place, sentence) in [
        (here.join("missing/state"), "folder cannot be used"),
        // Not even root makes files there.
        (PathBuf::from("/proc/offmap-state"), "cannot be taken"),
        // A file of that name can be made, and none beside it.
        (here.join(long), "cannot be taken"),
        (fifo, "is no regular file"),
        (here.join("to-fifo"), "is no regular file"),
        (here.clone(), "is no regular file"),
        (PathBuf::from("/dev/null"), "is no regular file"),
        (here.join(".."), "is no regular file"),
        (round, "symbolic links"),
    ] {
        let said = refused(&folder, &place);
        assert!(said.contains(sentence), "{}: {said}", place.display());
    }
}

#[test]
fn a_file_has_one_server() {
    let (folder, other) = (SocketFolder::new(), SocketFolder::new());
    let state = folder.socket().with_file_name("state");
    let link = other.socket().with_file_name("link");
    symlink(&state, &link).expect("a link");
    let nic = Nic::start(&folder, &state);
    for place in [&state, &link] {
        let said = refused(&other, place);
        assert!(said.contains("state is another server's"), "{said}");
    }
    // Another file in the same folder is another matter.
    Nic::start(&other, &state.with_file_name("state2")).stop();
    // Killed or stopped, it has let go.
    drop(nic);
    Nic::start(&other, &state).stop();
    Nic::start(&other, &link).stop();
}

#[test]
fn a_link_stays_and_what_it_points_to_is_replaced() {
    let folder = SocketFolder::new();
    let here = folder.socket().with_file_name("");
    fs::create_dir(here.join("far")).expect("a folder");
    symlink("far/second", here.join("link")).expect("a link");
    symlink("state", here.join("far/second")).expect("a link");
    for turn in 0..2 {
        let nic = Nic::start(&folder, &here.join("link"));
        let host = host(&nic);
        if turn == 0 {
            make(&host);
        }
        assert!(!host.list(64).is_empty(), "turn {turn}");
        drop(host);
        nic.stop();
        for link in ["link", "far/second"] {
            let found = fs::symlink_metadata(here.join(link)).expect("it is there");
            assert!(found.is_symlink(), "{link}");
        }
        let found = fs::symlink_metadata(here.join("far/state")).expect("it is there");
        assert!(found.is_file() && found.len() > 1000, "{found:?}");
    }
    assert_eq!(names(&here), ["far", "link"]);
    assert_eq!(names(&here.join("far")), ["second", "state"]);
}

#[test]
fn a_save_leaves_a_whole_file_for_its_owner_and_nothing_else() {
    let folder = SocketFolder::new();
    let here = folder.socket().with_file_name("");
    let state = here.join("state");
    // Of one that was killed while it saved; and what is nobody's leftover.
    for name in ["state.4194305.new", "state.old.new", "other.7.new"] {
        fs::write(here.join(name), b"half").expect("it can be written");
    }
    let nic = Nic::start(&folder, &state);
    nic.stop();
    assert_eq!(names(&here), ["other.7.new", "state", "state.old.new"]);
    for name in ["state", "state.lock"] {
        let found = fs::metadata(here.join(name)).expect("it is there");
        assert_eq!(found.permissions().mode() & 0o7777, 0o600, "{name}");
    }
    let old = fs::read(&state).expect("it is there");

    // A save that fails: its name is a folder's.
    let nic = Nic::start(&folder, &state);
    make(&host(&nic));
    let taken = here.join(format!("state.{}.new", nic.id()));
    fs::create_dir(&taken).expect("a folder");
    let said = nic.stop_with(1);
    assert!(said.contains("the state is not saved"), "{said}");
    assert_eq!(fs::read(&state).expect("it is there"), old);
    drop(Nic::start(&folder, &state));
}

/// A host with a driver that leaves its maps: the next one's driver finds them, by name, and goes on with
/// them. One that does not leave them leaves none.
#[test]
fn a_driver_takes_over_the_maps_of_the_one_before() {
    let mut config = DeviceConfig::default();
    config.firmware.memory_bytes = 16 << 20;
    config.keep_maps = true;
    let server = ServerThread::spawn(config);
    let driver = || {
        let function = Arc::new(attach(&server.path()));
        Driver::bring_up(function, DriverConfig::default()).expect("a driver")
    };
    let params = |n: u8| MapParams {
        map_type: 1 + u32::from(n % 2),
        key_size: 4,
        value_size: 8 * (1 + u32::from(n)),
        max_entries: 100 + u32::from(n),
        name: [b'a' + n; 16],
        ..MapParams::default()
    };
    let value = |n: u8| vec![n; 8 * (1 + usize::from(n))];
    let before = driver();
    let mut queue = before.create_queue().expect("a queue");
    // More than one answer of MAP_LIST holds.
    const MAPS: u8 = 100;
    for n in 0..MAPS {
        let map = before.create_map(&params(n)).expect("a map");
        let key = u32::from(n).to_le_bytes();
        let stored = queue.update(&map, &key, &value(n), 0).expect("an answer");
        assert_eq!(stored, Status::Success);
    }
    assert_eq!(
        before.adopt_maps().expect("a list").len(),
        usize::from(MAPS)
    );
    assert!(before.leave_maps());
    drop((queue, before));

    let after = driver();
    let mut queue = after.create_queue().expect("a queue");
    let mut adopted = after.adopt_maps().expect("a list");
    adopted.sort_by_key(|map| map.params.name);
    assert_eq!(adopted.len(), usize::from(MAPS));
    for (n, found) in (0..MAPS).zip(&adopted) {
        assert_eq!(found.params, params(n));
        assert!(found.map.bytes() > 0);
        let mut out = value(0).repeat(1 + usize::from(n));
        let key = u32::from(n).to_le_bytes();
        let read = queue.lookup(&found.map, &key, &mut out).expect("an answer");
        assert_eq!((read, out), (Status::Success, value(n)));
    }
    after.free_map(&adopted[7].map).expect("it is freed");
    assert_eq!(
        after.adopt_maps().expect("a list").len(),
        usize::from(MAPS) - 1
    );
    // After a reset of the driver's there are none, and what was adopted is known to be gone.
    after.reset().expect("a reset");
    assert!(after.adopt_maps().expect("a list").is_empty());
    assert!(after.query_map(&adopted[8].map).is_err());
    after.create_map(&params(1)).expect("a map");
    drop((queue, after));
    assert!(driver().adopt_maps().expect("a list").is_empty());
}
