//! A device that lies, under the real driver.
//!
//! Behind the lies works the emulated device, so that the driver gets far enough to be lied to: the
//! registers it reads are changed, words of the memory that it shares with the device are
//! overwritten, completions are copied from one entry to another and shown with the right phase,
//! resets happen, writes get lost. Its time is its own, so that deadlines cost nothing.

use super::bytes::Bytes;
use offmap_abi::{Completion, regs};
use offmap_device_io::{
    BarInfo, BarMapping, BarOffset, DmaBuffer, Function, Interrupt, IoError, Iova, IovaRange,
};
use offmap_driver::{
    DeviceMap, Driver, DriverConfig, DriverError, MapParams, Notify, Op, QueuePair, Token,
};
use offmap_emulator::{DeviceConfig, Inline};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Calls of the driver that an input may make.
const MOST_CALLS: u32 = 96;
/// How long a lost command is waited for, and then its abort.
const OP_TIMEOUT: Duration = Duration::from_millis(4);
const ADMIN_TIMEOUT: Duration = Duration::from_millis(6);
/// The longest call is a reset: disabling, a function-level reset, enabling, IDENTIFY, each within
/// READY_TIMEOUT_MS, which may be a minute, or ADMIN_TIMEOUT.
const LONGEST_CALL: Duration = Duration::from_secs(5 * 60);
/// Turns of the driver's waiting loops within one call. Each takes a microsecond at least.
const MOST_TURNS: u64 = 20_000_000;
/// DMA memory that the driver may have mapped together: queue pairs that were not confirmed as
/// deleted keep theirs until a reset.
const MOST_MAPPED: usize = 64 << 20;

/// What an input came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Ran {
    /// Calls of the driver.
    pub calls: u32,
    /// Of these, such as ended without an error.
    pub succeeded: u32,
    /// Lies told.
    pub lies: u32,
    /// Whether the driver brought the device up at all.
    pub came_up: bool,
}

struct State {
    input: Vec<u8>,
    at: usize,
    honest: bool,
    lies: u32,
    mapped: BTreeMap<u64, BarMapping>,
    irq: Vec<Interrupt>,
}

struct Liar {
    inner: Arc<Inline>,
    state: Mutex<State>,
    now_ns: AtomicU64,
    turns: AtomicU64,
}

impl State {
    /// Takes choices from the input, if there are any left.
    fn choose<R>(&mut self, f: impl FnOnce(&mut Bytes<'_>) -> R) -> Option<R> {
        if self.honest || self.at >= self.input.len() {
            return None;
        }
        let input = std::mem::take(&mut self.input);
        let mut bytes = Bytes::new(&input[self.at..]);
        let chosen = f(&mut bytes);
        self.at += bytes.taken();
        self.input = input;
        Some(chosen)
    }

    /// Overwrites something in the memory that driver and device share.
    fn scribble(&mut self) {
        let regions: Vec<(u64, usize)> = self.mapped.iter().map(|(k, v)| (*k, v.len())).collect();
        if regions.is_empty() {
            return;
        }
        let Some((which, how, at, other, value)) = self.choose(|b| {
            (
                b.below(regions.len()),
                b.u8(),
                b.below(1 << 16),
                b.below(1 << 16),
                b.word(),
            )
        }) else {
            return;
        };
        let (iova, len) = regions[which];
        let Some(memory) = self.mapped.get(&iova) else {
            return;
        };
        // Rings come first in their regions.
        let near = if how & 1 == 0 { len.min(4 * 4096) } else { len };
        let entry = at * 64 % near;
        let from = other * 64 % near;
        let word = at * 8 % near;
        match how >> 1 & 7 {
            // Any word; a bit of one.
            0 => memory.store_u64(word, value),
            1 => memory.store_u64(word, memory.load_u64(word) ^ 1 << (value % 64)),
            // An entry once more, as a completion of the other phase or this one.
            2 | 3 => {
                for i in (0..8).rev() {
                    memory.store_u64(entry + i * 8, memory.load_u64(from + i * 8));
                }
            }
            4 => memory.store_u64(entry, memory.load_u64(entry) ^ 1 << 16),
            // A forged completion: status, count and id as they come.
            5 => {
                let mut words = Completion::from_words([value; 8]).to_words(how >> 4 & 1 != 0);
                words[1] = memory.load_u64(from + 8);
                for i in (0..8).rev() {
                    memory.store_u64(entry + i * 8, words[i]);
                }
            }
            // Its count, or its status.
            6 => {
                let word0 = memory.load_u64(entry) & 0xffff_ffff;
                memory.store_u64(entry, word0 | value << 32);
            }
            _ => {
                let word0 = memory.load_u64(entry) & !0xffff;
                memory.store_u64(entry, word0 | value & 0xffff);
            }
        }
        self.lies += 1;
    }
}

impl Liar {
    fn new(input: &[u8]) -> Option<Arc<Self>> {
        let mut config = DeviceConfig::default();
        config.firmware.memory_bytes = 1 << 20;
        config.queue_pairs = 8;
        Some(Arc::new(Self {
            inner: Inline::new(config).ok()?,
            state: Mutex::new(State {
                input: input.to_vec(),
                at: 0,
                honest: false,
                lies: 0,
                mapped: BTreeMap::new(),
                irq: Vec::new(),
            }),
            now_ns: AtomicU64::new(0),
            turns: AtomicU64::new(0),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a register says.
    fn says(&self, offset: u64, truth: u64) -> u64 {
        let mut state = self.state();
        let lie = state.choose(|b| match b.u8() {
            0..=5 => Some(u64::MAX),
            6..=11 => Some(truth ^ 1 << (b.u8() % 64)),
            12..=15 => Some(b.word()),
            _ => None,
        });
        match lie.flatten() {
            // A minute for each READY would be much to wait for, and nothing new.
            Some(lie) if offset != regs::READY_TIMEOUT_MS || !(1000..=60_000).contains(&lie) => {
                state.lies += 1;
                lie
            }
            _ => truth,
        }
    }

    /// Whether a register write arrives.
    fn arrives(&self) -> bool {
        let mut state = self.state();
        let lost = state.choose(|b| b.u8() < 4) == Some(true);
        state.lies += u32::from(lost);
        !lost
    }

    /// A call of the driver begins.
    fn begin(&self) -> u64 {
        self.turns.store(0, Ordering::Relaxed);
        self.now_ns.load(Ordering::Relaxed)
    }

    fn turn(&self, ns: u64) {
        self.now_ns.fetch_add(ns, Ordering::Relaxed);
        let turns = self.turns.fetch_add(1, Ordering::Relaxed);
        assert!(turns < MOST_TURNS, "a call of the driver does not end");
    }
}

impl Function for Liar {
    fn describe(&self) -> String {
        "a liar".into()
    }

    fn config_read(&self, offset: u16, buf: &mut [u8]) -> Result<(), IoError> {
        self.inner.config_read(offset, buf)?;
        let lie = self.state().choose(|b| (b.u8() < 2).then(|| b.u64()));
        if let Some(Some(lie)) = lie {
            self.state().lies += 1;
            for (byte, lie) in buf.iter_mut().zip(lie.to_le_bytes()) {
                *byte ^= lie;
            }
        }
        Ok(())
    }

    fn config_write(&self, offset: u16, data: &[u8]) -> Result<(), IoError> {
        self.inner.config_write(offset, data)
    }

    fn bar(&self, bar: u8) -> Result<BarInfo, IoError> {
        self.inner.bar(bar)
    }

    fn read32(&self, bar: u8, offset: BarOffset) -> Result<u32, IoError> {
        let truth = self.inner.read32(bar, offset)?;
        Ok(self.says(offset.0, truth.into()) as u32)
    }

    fn read64(&self, bar: u8, offset: BarOffset) -> Result<u64, IoError> {
        let truth = self.inner.read64(bar, offset)?;
        Ok(self.says(offset.0, truth))
    }

    fn write32(&self, bar: u8, offset: BarOffset, value: u32) -> Result<(), IoError> {
        if self.arrives() {
            self.inner.write32(bar, offset, value)?;
        }
        Ok(())
    }

    fn write64(&self, bar: u8, offset: BarOffset, value: u64) -> Result<(), IoError> {
        if self.arrives() {
            self.inner.write64(bar, offset, value)?;
        }
        Ok(())
    }

    fn map_bar(
        &self,
        bar: u8,
        offset: BarOffset,
        len: usize,
    ) -> Result<Option<BarMapping>, IoError> {
        self.inner.map_bar(bar, offset, len)
    }

    fn iova_ranges(&self) -> Vec<IovaRange> {
        self.inner.iova_ranges()
    }

    fn dma_map(&self, buffer: &DmaBuffer, iova: Iova) -> Result<(), IoError> {
        self.inner.dma_map(buffer, iova)?;
        let view = BarMapping::new(buffer.fd(), 0, buffer.len())?;
        let mut state = self.state();
        state.mapped.insert(iova.0, view);
        let bytes: usize = state.mapped.values().map(BarMapping::len).sum();
        assert!(bytes <= MOST_MAPPED, "{bytes} bytes of DMA memory");
        Ok(())
    }

    fn dma_unmap(&self, iova: Iova, len: usize) -> Result<(), IoError> {
        self.inner.dma_unmap(iova, len)?;
        self.state().mapped.remove(&iova.0);
        Ok(())
    }

    fn vectors(&self) -> u32 {
        self.inner.vectors()
    }

    fn enable_vector(&self, vector: u32) -> Result<Interrupt, IoError> {
        let interrupt = self.inner.enable_vector(vector)?;
        self.state().irq.push(interrupt.try_clone()?);
        Ok(interrupt)
    }

    fn disable_vector(&self, vector: u32) -> Result<(), IoError> {
        self.inner.disable_vector(vector)
    }

    fn reset(&self) -> Result<(), IoError> {
        self.inner.reset()
    }

    fn progress(&self) {
        self.turn(1_000);
        let mischief = self.state().choose(|b| b.u8());
        match mischief {
            // It stands still.
            Some(0..=15) => {}
            Some(16..=111) => {
                self.state().scribble();
                self.inner.progress();
                self.state().scribble();
            }
            Some(112..=115) => drop(self.inner.reset()),
            Some(116..=119) => {
                // An interrupt for nothing.
                for interrupt in &self.state().irq {
                    let _ = interrupt.signal();
                }
            }
            _ => self.inner.progress(),
        }
    }

    fn runs_on_caller(&self) -> bool {
        true
    }

    fn now(&self) -> Duration {
        self.turn(200);
        Duration::from_nanos(self.now_ns.load(Ordering::Relaxed))
    }

    fn relax(&self) {
        self.turn(100_000);
    }
}

/// What an input has of the driver.
struct Rig {
    driver: Arc<Driver<Liar>>,
    queue: Option<QueuePair<Liar>>,
    map: Option<DeviceMap>,
    /// In flight, or finished and not taken, on that queue.
    tokens: Vec<Token>,
}

fn params(bytes: &mut Bytes<'_>) -> MapParams {
    let sizes = [(4, 8), (8, 64), (32, 600), (4, 5000)];
    let (key_size, value_size) = sizes[usize::from(bytes.u8()) % sizes.len()];
    let map_type = [1, 2, 5, 9][usize::from(bytes.u8()) % 4];
    MapParams {
        map_type,
        key_size: if map_type == 2 { 4 } else { key_size },
        value_size,
        max_entries: 8,
        cpu_slots: if map_type == 5 { 2 } else { 0 },
        seed: 7,
        ..MapParams::default()
    }
}

/// Calls of the driver on a device that lies as `input` says. Nothing may panic, take longer than
/// the deadlines allow or memory without bound; no command ends twice, and none that was not in
/// flight. In the end the device is honest, and after one reset everything works.
pub fn driver(input: &[u8]) -> Ran {
    let (calls, lies) = input.split_at(input.len() / 6);
    let Some(liar) = Liar::new(lies) else {
        return Ran::default();
    };
    let mut bytes = Bytes::new(calls);
    let config = DriverConfig {
        queue_depth: 2 << (bytes.u8() % 4),
        op_timeout: OP_TIMEOUT,
        admin_timeout: ADMIN_TIMEOUT,
        notify: [Notify::Block, Notify::Doorbell][usize::from(bytes.u8() % 2)],
        slot_bytes: 128,
        batch_bytes: 4096,
        ..DriverConfig::default()
    };
    let mut ran = Ran::default();
    let began = liar.begin();
    let up = Driver::bring_up(Arc::clone(&liar), config.clone());
    check_time(&liar, began);
    let driver = match up {
        Ok(driver) => driver,
        Err(_) => {
            liar.state().honest = true;
            assert!(
                liar.state().mapped.is_empty(),
                "memory of a failed bring-up"
            );
            match Driver::bring_up(Arc::clone(&liar), config) {
                Ok(driver) => driver,
                Err(e) => panic!("an honest device does not come up after a liar: {e}"),
            }
        }
    };
    ran.came_up = !liar.state().honest;
    let mut rig = Rig {
        driver,
        queue: None,
        map: None,
        tokens: Vec::new(),
    };
    while !bytes.is_over() && ran.calls < MOST_CALLS {
        let began = liar.begin();
        let ok = rig.call(&mut bytes);
        check_time(&liar, began);
        ran.calls += 1;
        ran.succeeded += u32::from(ok);
    }
    ran.lies = liar.state().lies;
    liar.state().honest = true;
    rig.afterwards();
    ran
}

fn check_time(liar: &Liar, began: u64) {
    let took = liar.now_ns.load(Ordering::Relaxed) - began;
    let took = Duration::from_nanos(took);
    assert!(took < LONGEST_CALL, "a call of the driver took {took:?}");
}

impl Rig {
    /// One call; whether it had no error.
    fn call(&mut self, bytes: &mut Bytes<'_>) -> bool {
        match bytes.u8() % 16 {
            0 => {
                self.tokens.clear();
                // Before the old one goes, so that both are there.
                let made = self.driver.create_queue();
                let ok = made.is_ok();
                self.queue = made.ok();
                ok
            }
            1 => {
                self.map = self.driver.create_map(&params(bytes)).ok();
                self.map.is_some()
            }
            2 if bytes.u8() < 64 => {
                self.tokens.clear();
                self.driver.reset().is_ok()
            }
            3 => match self.map.take() {
                Some(map) if bytes.u8() < 64 => self.driver.free_map(&map).is_ok(),
                Some(map) => {
                    let ok = self.driver.query_map(&map).is_ok();
                    self.map = Some(map);
                    ok
                }
                None => false,
            },
            4 => self.driver.check_health().is_ok(),
            pick => {
                if self.queue.as_ref().is_none_or(QueuePair::is_dead) {
                    self.tokens.clear();
                    self.queue = self.driver.create_queue().ok();
                }
                if self.map.is_none() {
                    self.map = self.driver.create_map(&params(bytes)).ok();
                }
                self.operate(pick, bytes)
            }
        }
    }

    fn operate(&mut self, pick: u8, bytes: &mut Bytes<'_>) -> bool {
        let (Some(queue), Some(map)) = (&mut self.queue, &self.map) else {
            return false;
        };
        let key = vec![bytes.u8() % 8; map.key_size()];
        let key = if map.key_size() == 4 {
            u32::from(key[0]).to_le_bytes().to_vec()
        } else {
            key
        };
        let mut value = vec![bytes.u8(); map.value_stride()];
        let count = 1 + bytes.below(6);
        let mut keys = key.repeat(count);
        let mut values = value.repeat(count);
        match pick {
            5 => queue.lookup(map, &key, &mut value).is_ok(),
            6 => queue
                .update(map, &key, &value, u32::from(bytes.u8() % 4))
                .is_ok(),
            7 => queue.delete(map, &key).is_ok(),
            8 => queue.get_next(map, &key, &mut keys[..key.len()]).is_ok(),
            9 => {
                let mut seen = 0;
                let done = queue.lookup_batch(map, &keys, &mut values, |i, _| {
                    assert_eq!(i, seen, "an element out of order");
                    seen += 1;
                });
                assert!(seen <= count);
                done.is_ok()
            }
            10 => match queue.update_batch(map, &keys, &values, 0) {
                Ok(done) => {
                    assert!(done.count <= count, "{done:?}");
                    true
                }
                Err(_) => false,
            },
            11 => {
                let cursor = bytes.word() as u32;
                match queue.dump(map, cursor, &mut keys, &mut values, bytes.u8() & 1 != 0) {
                    Ok(dumped) => {
                        assert!(dumped.count <= count, "{dumped:?}");
                        true
                    }
                    Err(_) => false,
                }
            }
            12 | 13 => {
                let op = match bytes.u8() % 3 {
                    0 => Op::Nop,
                    1 => Op::Lookup { map, key: &key },
                    _ => Op::Update {
                        map,
                        key: &key,
                        value: &value,
                        flags: 0,
                    },
                };
                match queue.submit(&op) {
                    Ok(token) => {
                        self.tokens.push(token);
                        true
                    }
                    Err(_) => false,
                }
            }
            14 => match self.tokens.last() {
                Some(token) => queue.abort(*token).is_ok(),
                None => false,
            },
            _ => {
                let finished = if bytes.u8() & 1 == 0 {
                    queue.poll()
                } else {
                    queue.wait()
                };
                match finished {
                    Ok(Some(finished)) => {
                        let token = finished.token();
                        let at = self.tokens.iter().position(|t| *t == token);
                        let at = at.unwrap_or_else(|| panic!("{token:?} was not in flight"));
                        self.tokens.swap_remove(at);
                        true
                    }
                    Ok(None) => true,
                    Err(_) => false,
                }
            }
        }
    }

    /// The device lies no more.
    fn afterwards(mut self) {
        self.queue = None;
        self.map = None;
        let expect = |what: &str, e: &dyn std::fmt::Display| -> ! {
            panic!("an honest device after a liar: {what}: {e}")
        };
        let Self { mut driver, .. } = self;
        match driver.reset() {
            Ok(()) => {}
            // It had lied about what it is, and was believed.
            Err(DriverError::IdentityChanged) => {
                let (liar, config) = (Arc::clone(driver.function()), driver.config().clone());
                // A driver that goes leaves its device disabled.
                drop(driver);
                driver = match Driver::bring_up(liar, config) {
                    Ok(driver) => driver,
                    Err(e) => expect("bring-up", &e),
                };
            }
            Err(e) => expect("reset", &e),
        }
        let params = MapParams {
            map_type: 1,
            key_size: 4,
            value_size: 8,
            max_entries: 8,
            ..MapParams::default()
        };
        let map = match driver.create_map(&params) {
            Ok(map) => map,
            Err(e) => expect("a map", &e),
        };
        let mut queue = match driver.create_queue() {
            Ok(queue) => queue,
            Err(e) => expect("a queue", &e),
        };
        let mut value = [0; 8];
        let done = queue
            .update(&map, &[1; 4], &[2; 8], 0)
            .and_then(|_| queue.lookup(&map, &[1; 4], &mut value));
        if let Err(e) = done {
            expect("an update and a lookup", &e);
        }
        assert_eq!(value, [2; 8], "what an honest device returns");
    }
}
