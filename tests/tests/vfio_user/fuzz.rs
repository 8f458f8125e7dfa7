//! Messages at random, for a bounded time: `OFFMAP_FUZZ_SECONDS` (5 for each by default), and
//! `OFFMAP_SEED` to run a seed again.

use crate::malformed::{access, irqs, map, unmap};
use crate::raw::{Raw, server};
use offmap_device_io::{BarOffset, DmaBuffer, DmaPlacement, Function, Interrupt, Iova};
use offmap_tests::report::seed;
use offmap_tests::served::{PATIENCE, SocketFolder};
use offmap_vfio_user::message::{ReceiveError, Wait, receive, send};
use offmap_vfio_user::wire::{self, Command, DeviceInfoBody, Header, RegionInfoBody};
use offmap_vfio_user::{Attach, VfioUser};
use rand::{Rng, RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};
use zerocopy::IntoBytes;

fn budget() -> Duration {
    let seconds = std::env::var("OFFMAP_FUZZ_SECONDS").ok();
    Duration::from_secs(seconds.and_then(|s| s.parse().ok()).unwrap_or(5))
}

/// A body that is right more often than not.
fn body(rng: &mut Xoshiro256PlusPlus, command: Command) -> Vec<u8> {
    let page = |rng: &mut Xoshiro256PlusPlus| 4096 * rng.random_range(0..20u64);
    let mut body = match command {
        Command::DMA_MAP => map(page(rng), page(rng), page(rng) % 16384)
            .as_bytes()
            .to_vec(),
        Command::DMA_UNMAP => unmap(page(rng), page(rng)).as_bytes().to_vec(),
        Command::DEVICE_GET_INFO | Command::DEVICE_GET_IRQ_INFO => {
            vec![
                16,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                rng.random_range(0..6),
                0,
                0,
                0,
                0,
                0,
                0,
                0,
            ]
        }
        Command::DEVICE_GET_REGION_IO_FDS => {
            let ask = [rng.random_range(10..80u32), 0, rng.random_range(0..10), 0];
            ask.as_bytes().to_vec()
        }
        Command::DEVICE_GET_REGION_INFO => {
            let info = RegionInfoBody {
                argsz: rng.random_range(32..100u32).into(),
                index: rng.random_range(0..10u32).into(),
                ..Default::default()
            };
            info.as_bytes().to_vec()
        }
        Command::DEVICE_SET_IRQS => {
            let flags = 1u32 << rng.random_range(0..3) | 8 << rng.random_range(0..3);
            let count = rng.random_range(0..4u32);
            let mut body = irqs(flags, 2, rng.random_range(0..18), count)
                .as_bytes()
                .to_vec();
            body.resize(20 + if flags & 2 != 0 { count as usize } else { 0 }, 1);
            body
        }
        Command::REGION_READ | Command::REGION_WRITE => {
            let region = [0, 2, 7][rng.random_range(0..3)];
            let offset = [0u64, 0x40, 0x1_0000, 0x2_0000, 0x3_0000][rng.random_range(0..5)]
                + 4 * rng.random_range(0..32u64);
            let count = 4 * rng.random_range(1..5u32);
            let mut body = access(region, offset, count).as_bytes().to_vec();
            if command == Command::REGION_WRITE {
                body.resize(16 + count as usize, rng.random());
            }
            body
        }
        Command::REGION_WRITE_MULTI => {
            let entry = [access(7, 4, 4).as_bytes(), &[6; 8]].concat();
            [&1u64.to_ne_bytes()[..], &entry].concat()
        }
        _ => Vec::new(),
    };
    if rng.random_range(0..3) == 0 {
        for _ in 0..rng.random_range(1..4) {
            match rng.random_range(0..3) {
                0 if !body.is_empty() => {
                    let at = rng.random_range(0..body.len());
                    body[at] = [0, 1, 0x7f, 0x80, 0xff, rng.random()][rng.random_range(0..6)];
                }
                1 => body.truncate(rng.random_range(0..=body.len())),
                _ => body.resize(body.len() + rng.random_range(1..9), rng.random()),
            }
        }
    }
    body
}

/// Whatever a client says, the server answers it, or closes the connection, and serves the
/// next one.
#[test]
fn the_server_outlives_any_client() {
    let seed = seed();
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    let server = server();
    let memory = DmaBuffer::new(1 << 16, DmaPlacement::default()).unwrap();
    let irq = Interrupt::new().unwrap();
    let (started, mut messages, mut refused) = (Instant::now(), 0u64, 0u64);
    while started.elapsed() < budget() || messages < 1000 {
        let mut raw = Raw::greeted(&server.path());
        for _ in 0..rng.random_range(1..500) {
            messages += 1;
            let command = Command(rng.random_range(0..20));
            let body = body(&mut rng, command);
            let fds: Vec<BorrowedFd<'_>> = match rng.random_range(0..4) {
                0 => vec![memory.fd()],
                1 => vec![irq.fd(); rng.random_range(0..4)],
                _ if command == Command::DMA_MAP => vec![memory.fd()],
                _ => Vec::new(),
            };
            let mut header = raw.command(command, body.len());
            match rng.random_range(0..100) {
                0 => {
                    header.size =
                        [0, 15, 17, 1 << 20, u32::MAX, rng.random()][rng.random_range(0..6)].into();
                    use std::io::Write;
                    let _ = raw.stream.write_all(header.as_bytes());
                    break;
                }
                1 => header.flags = rng.random::<u32>().into(),
                _ => {}
            }
            if raw.say(&header, &body, &fds).is_err() {
                break;
            }
            let silent = header.kind() == wire::TYPE_COMMAND && header.has(wire::NO_REPLY);
            if silent {
                continue;
            }
            match raw.hear() {
                Ok(reply) => {
                    assert_eq!(reply.header.id, header.id, "seed {seed}");
                    refused += u64::from(reply.header.has(wire::ERROR));
                }
                Err(ReceiveError::Closed) => break,
                Err(e) => panic!("seed {seed}: {e}"),
            }
        }
    }
    Raw::greeted(&server.path()).alive();
    assert!(
        refused > messages / 100 && refused < messages,
        "{refused} of {messages}"
    );
}

/// Whatever a server answers, the client comes back with a result, in time.
#[test]
fn the_client_outlives_any_server() {
    let seed = seed();
    let folder = SocketFolder::new();
    let listener = UnixListener::bind(folder.socket()).unwrap();
    let timeout = Duration::from_millis(200);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
            while let Ok((stream, _)) = listener.accept() {
                if stop.load(std::sync::atomic::Ordering::Relaxed) {
                    return;
                }
                let wait = Wait::until(Instant::now() + Duration::from_secs(10));
                let mut right = rng.random_range(0..40);
                while let Ok(asked) = receive(&stream, &wait) {
                    right -= 1;
                    if answer(&stream, &asked.header, &asked.body, &mut rng, right > 0).is_err() {
                        break;
                    }
                }
            }
        });
        let (started, mut rounds, mut attached) = (Instant::now(), 0, 0);
        // A busy machine lets some deadlines pass that an idle one keeps: until there was one
        // attachment that succeeded, and one that did not.
        let more = |rounds, attached| rounds < 20 || attached == 0 || attached == rounds;
        while started.elapsed() < budget()
            || (more(rounds, attached) && started.elapsed() < PATIENCE)
        {
            rounds += 1;
            let began = Instant::now();
            if let Ok(function) = VfioUser::attach(
                &folder.socket(),
                Attach {
                    timeout,
                    ..Attach::default()
                },
            ) {
                attached += 1;
                let memory = DmaBuffer::new(4096, DmaPlacement::default()).unwrap();
                for _ in 0..8 {
                    let _ = function.read32(0, BarOffset(0));
                    let _ = function.write64(0, BarOffset(8), 1);
                    let _ = function.config_read(0, &mut [0; 64]);
                    let _ = function.dma_map(&memory, Iova(0x1000));
                    let _ = function.dma_unmap(Iova(0x1000), 4096);
                    let _ = function.enable_vector(0);
                    let _ = function.map_bar(0, BarOffset(0x1_0000), 0x1_0000);
                    let _ = function.reset();
                }
            }
            // One deadline for the attachment, and one for what came after.
            let took = began.elapsed();
            assert!(took < 2 * timeout + PATIENCE, "seed {seed}: {took:?}");
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let _ = std::os::unix::net::UnixStream::connect(folder.socket());
        assert!(rounds > attached && attached > 0, "{attached} of {rounds}");
    });
}

/// An answer as it should be, or one with something wrong.
fn answer(
    stream: &std::os::unix::net::UnixStream,
    asked: &Header,
    body: &[u8],
    rng: &mut Xoshiro256PlusPlus,
    right: bool,
) -> Result<(), ReceiveError> {
    let mut answer = match asked.about() {
        Command::VERSION => {
            let says = b"{\"capabilities\":{\"region_io_fds\":true}}\0";
            [&[0, 0, 1, 0], &says[..]].concat()
        }
        Command::DEVICE_GET_REGION_IO_FDS => {
            let index = u32::from(body.get(8).copied().unwrap_or(0));
            let listed = [56, 0, index, 1, 8, 0, 4, 0, 0, 0, 0, 0, 0, 0u32];
            listed.as_bytes().to_vec()
        }
        Command::DEVICE_GET_INFO => DeviceInfoBody {
            argsz: 16.into(),
            flags: 3.into(),
            regions: 9.into(),
            irqs: 5.into(),
        }
        .as_bytes()
        .to_vec(),
        Command::DEVICE_GET_REGION_INFO => {
            let mut info =
                wire::take::<RegionInfoBody>(body).map_or_else(Default::default, |i| i.0);
            let mapped = info.index.get() == 0 && info.argsz.get() >= 64;
            info.size = if info.index.get().is_multiple_of(7) {
                1u64 << 18
            } else {
                0
            }
            .into();
            info.flags = if mapped { 15u32 } else { 3 }.into();
            info.argsz = if info.index.get() == 0 { 64u32 } else { 32 }.into();
            info.cap_offset = if mapped { 32u32 } else { 0 }.into();
            let caps = [1, 1u64 << 32 | 1, 0x1_0000, 0x1_0000];
            let caps: Vec<u8> = caps.iter().flat_map(|word| word.to_ne_bytes()).collect();
            [info.as_bytes(), if mapped { &caps } else { &[][..] }].concat()
        }
        Command::DEVICE_GET_IRQ_INFO => [16u32, 1, 2, 17].as_bytes().to_vec(),
        Command::REGION_READ => {
            let count = body.get(12..16).map_or(0, |c| c[0]);
            [body, &vec![0; usize::from(count)]].concat()
        }
        Command::REGION_WRITE => body.get(..16).unwrap_or(&[]).to_vec(),
        Command::DMA_UNMAP => body.to_vec(),
        _ => Vec::new(),
    };
    let mut header = asked.reply(answer.len());
    let wait = Wait::until(Instant::now() + Duration::from_secs(10));
    let memory = DmaBuffer::new(1 << 17, DmaPlacement::default()).expect("memory");
    let mut fds = match asked.about() {
        Command::DEVICE_GET_REGION_INFO if answer.len() > 32 => vec![memory.fd()],
        _ => Vec::new(),
    };
    if !right {
        match rng.random_range(0..9) {
            0 => return Err(ReceiveError::Closed),
            1 => return Ok(()),
            2 => header.id = rng.random::<u16>().into(),
            3 => header.command = rng.random_range(0..20u16).into(),
            4 => header.flags = rng.random::<u32>().into(),
            5 => header = asked.refusal(rng.random::<i32>()),
            6 => fds = vec![memory.fd(); rng.random_range(0..4)],
            7 => {
                answer.resize(rng.random_range(0..200), rng.random());
                header = asked.reply(answer.len());
            }
            _ => rng.fill_bytes(&mut answer),
        }
        if header.size.get() as usize != 16 + answer.len() {
            answer.clear();
            header.size = 16.into();
        }
    }
    send(stream, &header, &[&answer], &fds, &wait)
}
