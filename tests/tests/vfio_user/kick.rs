//! KICK without a message: the eventfd that DEVICE_GET_REGION_IO_FDS gives, and what a client makes of
//! other answers.

use crate::malformed::access;
use crate::raw::{INVAL, NOTSUP, Raw, server};
use offmap_abi::regs;
use offmap_device_io::{BarOffset, Function, Interrupt, IoError};
use offmap_emulator::faults::{Behaviour, FaultPlan, Rule, Site};
use offmap_tests::served::{OverSocket, PATIENCE, ServerThread, SocketFolder, attach, device};
use offmap_vfio_user::message::{Wait, receive, send};
use offmap_vfio_user::wire::{
    self, Command, DeviceInfoBody, Header, RegionInfoBody, RegionIoFdsBody, SubRegionIoFd,
};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::{Duration, Instant};
use zerocopy::IntoBytes;

fn ask(index: u32, argsz: u32) -> RegionIoFdsBody {
    RegionIoFdsBody {
        argsz: argsz.into(),
        index: index.into(),
        ..Default::default()
    }
}

/// The eventfd of KICK, as a client gets it that knows where KICK is.
fn kick_of(raw: &mut Raw) -> Interrupt {
    let command = Command::DEVICE_GET_REGION_IO_FDS;
    let mut reply = raw.good(command, ask(0, 56).as_bytes(), &[]);
    let (info, listed) = wire::take::<RegionIoFdsBody>(&reply.body).expect("16 bytes");
    let mut said = ask(0, 56);
    said.count = 1.into();
    assert_eq!(info, said);
    let (kick, rest) = wire::take::<SubRegionIoFd>(listed).expect("40 bytes");
    let expected = SubRegionIoFd {
        offset: regs::KICK.into(),
        size: 4.into(),
        ..Default::default()
    };
    assert_eq!((kick, rest.len(), reply.fds.len()), (expected, 0, 1));
    Interrupt::from_eventfd(reply.fds.remove(0)).expect("an eventfd")
}

/// KICKs that have reached the device, which is told to count them.
fn kicks(server: &ServerThread) -> u64 {
    server.device().fault_report().expect("it lives").rules[0].injected
}

fn count_kicks(server: &ServerThread) {
    let kicks = Rule::new(Site::RegisterWrite, Behaviour::Drop).at_register(regs::KICK);
    let plan = FaultPlan::new().with(kicks).expect("a rule");
    server.device().set_faults(&plan, 1).expect("it lives");
}

#[track_caller]
fn wait_for_kicks(server: &ServerThread, least: u64) {
    let started = Instant::now();
    while kicks(server) < least {
        assert!(started.elapsed() < PATIENCE, "{} kicks", kicks(server));
        thread::sleep(Duration::from_millis(1));
    }
}

/// What is signalled arrives as a write of KICK. The eventfd is the client's own: the next one gets
/// another, and nobody hears the first any more.
#[test]
fn a_signal_is_a_kick() {
    let server = server();
    count_kicks(&server);
    let mut raw = Raw::greeted(&server.path());
    let kick = kick_of(&mut raw);
    raw.good(
        Command::REGION_WRITE,
        &[access(7, 4, 2).as_bytes(), &[6, 0]].concat(),
        &[],
    );
    assert_eq!(kicks(&server), 0);
    for n in 1..=3 {
        kick.signal().unwrap();
        wait_for_kicks(&server, n);
    }
    raw.alive();
    let again = kick_of(&mut raw);
    again.signal().unwrap();
    wait_for_kicks(&server, 4);
    drop(raw);
    server.wait_told("the client has left");
    kick.signal().unwrap();
    let mut raw = Raw::greeted(&server.path());
    let enable = [access(7, 4, 2).as_bytes(), &[6, 0]].concat();
    raw.good(Command::REGION_WRITE, &enable, &[]);
    let next = kick_of(&mut raw);
    next.signal().unwrap();
    wait_for_kicks(&server, 5);
    raw.alive();
    assert_eq!(kicks(&server), 5, "of the old eventfd came none");
    assert!(kick.take().unwrap(), "nobody took it");
}

#[test]
fn questions_about_descriptors_that_cannot_be() {
    let server = server();
    let mut raw = Raw::greeted(&server.path());
    let command = Command::DEVICE_GET_REGION_IO_FDS;
    for short in 0..16 {
        raw.bad(command, &ask(0, 56).as_bytes()[..short], &[], INVAL);
        raw.bad(command, ask(0, short as u32).as_bytes(), &[], INVAL);
    }
    let mut flags = ask(0, 56);
    flags.flags = 1.into();
    raw.bad(command, flags.as_bytes(), &[], INVAL);
    for none in [9, u32::MAX] {
        raw.bad(command, ask(none, 56).as_bytes(), &[], INVAL);
    }
    for region in 1..9 {
        raw.bad(command, ask(region, 56).as_bytes(), &[], NOTSUP);
    }
    let (a, _b) = UnixStream::pair().unwrap();
    raw.bad(command, ask(0, 56).as_bytes(), &[a.as_fd()], INVAL);
    // Who has room for a part is told how much there is, and gets no descriptor.
    for room in [16, 55] {
        let reply = raw.good(command, ask(0, room).as_bytes(), &[]);
        let (info, rest) = wire::take::<RegionIoFdsBody>(&reply.body).expect("16 bytes");
        assert_eq!((info.argsz.get(), info.count.get()), (56, 1));
        assert!(rest.is_empty() && reply.fds.is_empty());
    }
}

/// Our client sends no message for a KICK, and one for each other write.
#[test]
fn our_client_signals_and_says_nothing() {
    let function = OverSocket::thread(device(&offmap_tests::conformance::Wanted::default()));
    count_kicks(&function.server);
    function.config_write(4, &[6, 0]).unwrap();
    let client = function.inner().client();
    let before = client.commands_sent();
    function.write32(0, BarOffset(regs::KICK), 7).unwrap();
    assert_eq!(client.commands_sent(), before);
    wait_for_kicks(&function.server, 1);
    function
        .write64(0, BarOffset(regs::WINDOW_BASE), 0)
        .unwrap();
    assert_eq!(client.commands_sent(), before + 1);
}

/// What a scripted server lists as its eventfds: entries with their descriptors.
type Listed = (Vec<SubRegionIoFd>, Vec<OwnedFd>);

/// Serves one client a BAR 0 of 4 KiB, until it leaves. The number of writes that came as messages.
fn serve(stream: &UnixStream, listed: &Listed, says_so: bool) -> u64 {
    let wait = || Wait::until(Instant::now() + PATIENCE);
    let mut writes = 0;
    while let Ok(asked) = receive(stream, &wait()) {
        let reply = |body: &[u8], fds: &[BorrowedFd<'_>]| {
            let header: Header = asked.header.reply(body.len());
            send(stream, &header, &[body], fds, &wait()).expect("it is heard");
        };
        match asked.header.about() {
            Command::VERSION => {
                let says = match says_so {
                    true => &b"{\"capabilities\":{\"region_io_fds\":true}}\0"[..],
                    false => b"{}\0",
                };
                reply(&[&[0, 0, 1, 0], says].concat(), &[]);
            }
            Command::DEVICE_GET_INFO => {
                let info = DeviceInfoBody {
                    argsz: 16.into(),
                    flags: 3.into(),
                    regions: 9.into(),
                    irqs: 0.into(),
                };
                reply(info.as_bytes(), &[]);
            }
            Command::DEVICE_GET_REGION_INFO => {
                let (mut info, _) = wire::take::<RegionInfoBody>(&asked.body).expect("32 bytes");
                info.size = if info.index.get() % 7 == 0 {
                    4096u64
                } else {
                    0
                }
                .into();
                info.flags = 3.into();
                reply(info.as_bytes(), &[]);
            }
            Command::DEVICE_GET_REGION_IO_FDS => {
                assert!(says_so, "a server that says nothing is not asked");
                let mut head = ask(0, 16 + 40 * listed.0.len() as u32);
                head.count = (listed.0.len() as u32).into();
                let fds: Vec<BorrowedFd<'_>> = listed.1.iter().map(AsFd::as_fd).collect();
                reply(&[head.as_bytes(), listed.0.as_bytes()].concat(), &fds);
            }
            Command::REGION_READ => reply(&[&asked.body[..16], &[0; 64]].concat(), &[]),
            Command::REGION_WRITE => {
                writes += 1;
                reply(&asked.body[..16], &[]);
            }
            other => panic!("{other}"),
        }
    }
    writes
}

fn is_signalled(fd: &OwnedFd) -> bool {
    let now = Timespec::default();
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    poll(&mut fds, Some(&now)).expect("it can be asked") == 1
}

/// Writes `value`, of 4 bytes at 0x48, to a server that lists these. Whether it came as a message, and
/// whether it signalled the first descriptor.
fn written(entries: &[SubRegionIoFd], fds: Vec<OwnedFd>, says_so: bool, value: u32) -> (u64, bool) {
    let folder = SocketFolder::new();
    let listener = UnixListener::bind(folder.socket()).unwrap();
    let first = fds[0].try_clone().unwrap();
    let listed = (entries.to_vec(), fds);
    thread::scope(|scope| {
        let server = scope.spawn(|| serve(&listener.accept().unwrap().0, &listed, says_so));
        let function = attach(&folder.socket());
        function.write32(0, BarOffset(0x48), value).unwrap();
        drop(function);
        (server.join().unwrap(), is_signalled(&first))
    })
}

#[test]
fn a_client_signals_only_what_stands_for_its_write() {
    let event = |flags| eventfd(0, flags).unwrap();
    let ours = || vec![event(EventfdFlags::NONBLOCK)];
    let plain = SubRegionIoFd {
        offset: 0x48.into(),
        size: 4.into(),
        ..Default::default()
    };
    let with = |change: &dyn Fn(&mut SubRegionIoFd)| {
        let mut entry = plain;
        change(&mut entry);
        [entry]
    };
    const EVENT: (u64, bool) = (0, true);
    const MESSAGE: (u64, bool) = (1, false);
    assert_eq!(written(&[plain], ours(), true, 7), EVENT);
    assert_eq!(written(&[plain], ours(), false, 7), MESSAGE);
    assert_eq!(
        written(&with(&|e| e.size = 0.into()), ours(), true, 7),
        EVENT
    );
    let matched = with(&|e| {
        e.flags = wire::IO_FD_DATAMATCH.into();
        e.data = 7.into();
    });
    assert_eq!(written(&matched, ours(), true, 7), EVENT);
    assert_eq!(written(&matched, ours(), true, 8), MESSAGE);
    let others: [&dyn Fn(&mut SubRegionIoFd); 7] = [
        &|e| e.offset = 0x4c.into(),
        &|e| e.size = 8.into(),
        &|e| e.kind = 1.into(),
        &|e| e.flags = 2.into(),
        &|e| e.fd_index = 1.into(),
        &|e| e.fd_index = u32::MAX.into(),
        &|e| e.offset = u64::MAX.into(),
    ];
    for (n, other) in others.into_iter().enumerate() {
        assert_eq!(written(&with(other), ours(), true, 7), MESSAGE, "{n}");
    }
    // What is no eventfd could hold whoever writes to it.
    let (a, _b) = UnixStream::pair().unwrap();
    let sent = written(&[plain], vec![a.into()], true, 7);
    assert_eq!(sent, MESSAGE);
    // As many as there is room for, of which the last fits.
    let mut many = [with(&|e| e.offset = 0.into())[0]; 16];
    many[15] = plain;
    assert_eq!(written(&many, ours(), true, 7), EVENT);
    // One that is full, and would block: the signal is there already.
    let full = event(EventfdFlags::empty());
    rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    assert_eq!(written(&[plain], vec![full], true, 7), EVENT);
}

/// A list of another region, or of no length that it could have, is told from one that is short.
#[test]
fn a_list_of_another_region_ends_the_attachment() {
    let folder = SocketFolder::new();
    let listener = UnixListener::bind(folder.socket()).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let stream = listener.accept().unwrap().0;
            // The command's body comes back as it is, but for the region.
            let wait = || Wait::until(Instant::now() + PATIENCE);
            while let Ok(asked) = receive(&stream, &wait()) {
                if asked.header.about() == Command::DEVICE_GET_REGION_IO_FDS {
                    let body = ask(3, 16);
                    let header = asked.header.reply(16);
                    send(&stream, &header, &[body.as_bytes()], &[], &wait()).unwrap();
                    continue;
                }
                let body: Vec<u8> = match asked.header.about() {
                    Command::VERSION => {
                        let says = b"{\"capabilities\":{\"region_io_fds\":true}}\0";
                        [&[0, 0, 1, 0], &says[..]].concat()
                    }
                    Command::DEVICE_GET_INFO => [16u32, 3, 9, 0].as_bytes().to_vec(),
                    Command::DEVICE_GET_REGION_INFO => {
                        let mut body = asked.body.clone();
                        body[4] = 3;
                        body[17] = 16;
                        body
                    }
                    _ => [&asked.body[..16], &[0; 64]].concat(),
                };
                let header = asked.header.reply(body.len());
                send(&stream, &header, &[&body], &[], &wait()).unwrap();
            }
        });
        let attach = offmap_vfio_user::Attach {
            timeout: PATIENCE,
            ..Default::default()
        };
        let refused = offmap_vfio_user::VfioUser::attach(&folder.socket(), attach);
        assert!(matches!(refused, Err(IoError::Gone(_))), "{refused:?}");
    });
}
