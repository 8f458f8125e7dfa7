//! The command line.

use crate::bench::BenchArgs;
use crate::model::ModelArgs;
use clap::{Args, Parser, Subcommand, ValueEnum};
use offmap_emulator::{Ecc, TierConfig};
use offmap_offload::Placement;
use std::ffi::OsString;
use std::path::PathBuf;

/// Offload eBPF maps to an emulated SmartNIC, in this process or in another one.
#[derive(Debug, Parser)]
#[command(
    name = "offmap",
    version,
    max_term_width = 100,
    arg_required_else_help = true
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What `offmap` can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Offload the maps of a BPF object and check them against host maps
    #[command(
        long_about = "Offload the maps of a BPF object and check them against host maps.

Brings up the emulated SmartNIC, reads the map definitions of a compiled BPF object (BTF, \
section .maps), and creates each map twice: with map_ifindex set, so that it lives in the \
NIC's device memory and every operation becomes a descriptor on a ring, and in host memory. \
Both are then driven through the same seeded workload: insert, overwrite, look up, miss, \
iterate, batch, delete, fill to the brim and try one more. Every result, errno and output \
buffer is compared, and then lookups are timed on both in turns.",
        after_long_help = "Exit status:
  0  every map agreed on every result and errno
  1  some did not, or the NIC did not come up, or --metrics could not be written
  2  the command line, the object, the profile or the fault plan is bad; one
     sentence on stderr says what is wrong

With --faults the plan begins once the NIC is up. An operation then ends within half a second. \
Status 0 means that every fault was made up for, 1 that some showed: the output lists what was \
injected and how each operation that met a fault ended, and after the first that showed the two \
maps may rightly differ.

Limits: an object may have 64 MiB and 1,024 maps. The NIC has 4 GiB of device memory, and a map that does not fit is listed with the reason. A map is filled with at most 1,048,576 \
entries or 128 MiB of keys and values; where that is short of max_entries, the output says so. \
The random operations before that stop when they have moved 4 GiB of keys and values, whatever \
--operations says; \"operations\" in the JSON is what was done.

Examples:
  offmap demo
  offmap demo --object /usr/lib/x86_64-linux-gnu/bpf/xdpfilt_dny_all.o
  offmap demo --profile netdevsim
  offmap demo --timing nfp6000
  offmap demo --json | jq '.maps[] | {name, device_bytes}'"
    )]
    Demo(DemoArgs),
    /// Make the same bpf(2) calls to the running kernel and to offmap, and compare
    #[command(
        long_about = "Make the same bpf(2) calls, byte for byte, to the running kernel and to offmap's map side, \
and compare each result, errno and output byte.

Calls are drawn from a seed: maps of all types that offmap has on the host, right and wrong \
attributes, flags, pointers, sizes and orders. Needs root and a kernel that has bpf(2); offmap \
follows Linux 6.18, and other versions differ where the kernel changed.",
        after_long_help = "Exit status:
  0  no difference, or only such as are explained; each of those is printed
     with the kernel file
  1  a difference that nothing accounts for
  2  the command line is bad, or the kernel takes no maps from this process

Examples:
  offmap diff --calls 1000000
  offmap diff --seed 7 --shard 2/8 --json
  offmap diff --seed 7 --sequence 1234"
    )]
    Diff(DiffArgs),
    /// Measure offloaded maps against host maps, side by side
    #[command(
        long_about = "Measure offloaded maps against host maps, side by side.

The same operations on the same keys are done by the running kernel's map (bpf(2)), by maps of this process, and by \
the offloaded map: on a device on this thread (inline), on a thread of its own (threaded) and in a process of its \
own (vfio_user). They run in alternating blocks of at most a millisecond, and ratios are \
the median of the ratios block by block, because absolute times drift on shared processors. What is not \
available here says why; without root that is the kernel's map.",
        after_long_help = "Exit status:
  0  measured
  1  something became slower than in the --baseline by more than noise; or a
     file could not be written, or threads cannot be bound to processors here
  2  the command line or the baseline is bad

A ratio named in the JSON's \"ratios\" is null where a side is not available; \"ratio_details\" has the reason.
Times are wall-clock nanoseconds of the emulator on this machine; modelled times are what `offmap demo --timing` and `offmap model` print. \
docs/bench.md says how to read the figures.

Examples:
  offmap bench --quick
  offmap bench --json run.json --html run.html
  offmap bench --baseline run.json
  offmap bench --only lookup --only lookup_cores
  offmap bench --workload connections --workload my-mix.toml"
    )]
    Bench(BenchArgs),
    /// Run driver and device in a deterministic simulation that tries to break them
    #[command(
        long_about = "Run the real driver and the real emulated device in a deterministic simulation that \
tries to break them, and check what the hosts see.

A seed stands for a device, up to four hosts with a queue pair each, and 1,200 actions: \
commands, batches, walks, aborts, queues and maps that come and go, stalls, resets, removal; and in \
every other seed, a fault plan for the device. It also decides \
when the device gets on and in which order stores become visible, within the ordering rules of \
docs/abi.md. Checked is that each map's history has an order that explains every answer, that \
nothing acknowledged is lost, that every call ends in time, that no wake-up is lost, that the device writes only \
where a command let it, and that nothing is left at the end. docs/simulation.md says more.",
        after_long_help = "Exit status:
  0  no violation
  1  nothing was checked, since with these faults no operation came to an answer; or a seed failed; the output has a line that runs it again, and what the
     least part of it that still fails did
  2  the command line or the fault plan is bad; one sentence on stderr says
     what is wrong

Examples:
  offmap sim --seeds 10000
  offmap sim --seeds 1000 --faults plan.toml
  offmap sim --seed 4711
  offmap sim --seeds 100000 --shard 3/16 --json
  offmap sim --seeds 1000000000 --from $RANDOM --seconds 60"
    )]
    Sim(SimArgs),
    /// Ask what offloading would give on hardware that is not here: sweeps in modelled time
    #[command(
        long_about = "Ask what offloading would give on hardware that is not here: sweeps in modelled time.

A timing profile says what the hardware takes (PCIe, DMA, engines, tiers of memory), a workload what is done on it: \
the map, the host's commands, packets that engines look up. A discrete-event simulation runs the one on the other, \
with queues where things contend, and tells throughput, latency percentiles and the bottleneck by name. Each \
--sweep adds an axis to a grid of points. What an operation costs in accesses is counted on the firmware's own \
tables; larger tables than fit here are inferred from smaller ones of their shape.

All times are modelled. The same input and seed give the same document on every machine, also when it ran in \
parts that were merged.",
        after_long_help = "Exit status:
  0  done; points that the hardware does not admit say why
  1  a file could not be written
  2  the command line, the timing profile, the workload or a part is bad; one
     sentence on stderr says what is wrong

Examples:
  offmap model --list
  offmap model --timing nfp6000 --workload routes --sweep depth=1,4,16,64
  offmap model --workload connections --sweep entries=65536,1048576,16777216 --sweep pcie=gen4x8,gen5x16 --svg plots
  offmap model --workload fleet --sweep nics=8,16 --sweep engines=16,64,256
  offmap model --workload fleet --sweep mpps=50,100,200 --shard 2/3 -o part-2.json
  offmap model merge part-*.json -o whole.json --svg plots"
    )]
    Model(ModelArgs),
    /// Serve the emulated SmartNIC to another process or a virtual machine
    #[command(
        long_about = "Serve the emulated SmartNIC to another process or a virtual machine, by the vfio-user \
protocol over a Unix socket.

One client is served at a time; another one is told that the device is busy. When a client leaves or \
dies the device is reset, its memory is let go, and the next one can come. The socket is for you \
alone: it is made with mode 0600, a file that a dead server left is replaced, and it is removed at the end.

With --state maps outlive the client that made them, and the process: SIGTERM saves them, and the next start with the same \
limits has them again. FILE is one server's at a time, which holds a lock on FILE.lock. The next client finds them; a reset that it asks for frees them, as ever.

A client's memory must be a memfd that is sealed against shrinking, as QEMU's memory-backend-memfd makes \
it. docs/vfio.md has the command lines.",
        after_long_help = "Exit status:
  0  stopped by SIGTERM or SIGINT
  1  the device died, no client can be accepted any more, or the state
     cannot be saved
  2  the command line, the fault plan, the socket's path, the state's path
     or the saved state is bad; one sentence on stderr says what is wrong

Examples:
  offmap nic --socket /tmp/nic.sock
  offmap demo --device vfio-user:/tmp/nic.sock"
    )]
    Nic(NicArgs),
    /// Run a program with the emulated SmartNIC as its offload device, unchanged
    #[command(
        long_about = "Run a program with the emulated SmartNIC as its offload device, unchanged.

bpf(2) of the program, its threads and its children is looked at through a seccomp filter. Maps that it creates \
with map_ifindex set to the interface offmap0, and those that --offload-map or --all-maps names, live on the \
SmartNIC; every other call goes to the kernel as ever. Nothing is preloaded, so that static binaries and \
programs that make raw system calls work as well.

The interface stands in a network namespace of the program's own; with --ifname it is one that is there, and \
the program stays in the namespace it is in. Without the privilege to create BPF maps the program's descriptors \
are memfds, and lists, ids and pins are answered by offmap; see docs/run.md.",
        after_long_help = "Exit status: the program's. 128 and the number of the signal that ended it; 125 when it \
was not run, 126 when it cannot be executed, 127 when there is none; 2 when the command line is bad.

Examples:
  offmap run -- bpftool map create /sys/fs/bpf/m type hash key 4 value 8 entries 64 name m dev offmap0
  offmap run --all-maps -- ./my-loader
  offmap run --offload-map 'flows*' --device vfio-user:/tmp/nic.sock -- ./my-loader
  offmap run --ifname eth0 --profile netdevsim -- ./test-suite"
    )]
    Run(RunArgs),
    /// Keep devices and their maps for one `offmap run --connect` after the other
    #[command(
        long_about = "Keep devices and their maps for one `offmap run --connect` after the other.

Programs that join share the devices, and find each other's maps by pin and by id. A map that nothing refers to any more is \
freed; pins last until the daemon ends. The socket is for you alone: it is made with mode 0600, and other users are \
turned away.",
        after_long_help = "Exit status:
  0  stopped by SIGTERM, SIGINT or SIGHUP
  1  a device does not come up, the socket cannot be made, or nobody can join any more
  2  the command line, the profile or the fault plan is bad; one sentence on
     stderr says what is wrong

Examples:
  offmap daemon --socket /run/user/1000/offmap.sock &
  offmap run --connect /run/user/1000/offmap.sock -- bpftool map show"
    )]
    Daemon(DaemonArgs),
    /// Test devices, bind those on the PCI bus to vfio-pci, and get what it takes to build one
    #[command(
        long_about = "Test devices, bind those on the PCI bus to vfio-pci, and get what it takes to build one.

A function that is bound to vfio-pci is no longer the kernel's: `--device vfio:ADDRESS` drives it \
from this process, with its memory behind the IOMMU. Binding says step by step what it does, and \
undoes that when a step fails. docs/vfio.md has the whole way, from a virtual machine on.",
        after_long_help = "Exit status:
  0  done
  1  a case of the test failed, the function could not be bound or given back, or sysfs cannot be read
  2  the command line is bad, or there is no such device

Examples:
  offmap device list
  offmap device bind 0000:01:00.0
  offmap device test --device vfio:0000:01:00.0
  offmap device unbind 0000:01:00.0"
    )]
    Device(DeviceArgs),
    /// Show capability profiles, and check one's own
    #[command(
        long_about = "Show capability profiles, and check one's own.

A profile says what an offload device admits (map types, flags, sizes, numbers of maps and \
elements) and how it behaves where that differs from a host map. The built-in ones are offmap (the \
default), netdevsim and nfp; docs/profiles.md describes the files, which need no code.",
        after_long_help = "Exit status:
  0  the profile is good
  2  the command line or the profile is bad; one sentence on stderr says
     what is wrong and where

Examples:
  offmap profile list
  offmap profile show nfp
  offmap profile show nfp --toml > mine.toml
  offmap profile check mine.toml --json
  offmap demo --profile mine.toml"
    )]
    Profile(ProfileArgs),
}

/// Arguments of `offmap run`.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Where a device is; once for each [default: inline]
    ///
    /// inline: on the thread that answers the call; threaded: on a thread of its own;
    /// vfio-user:PATH: in another process, which `offmap nic --socket PATH` started;
    /// vfio:ADDRESS: on the PCI bus, bound to vfio-pci (see `offmap device`)
    #[arg(long, value_name = "KIND", value_parser = device)]
    pub device: Vec<DeviceKind>,

    /// Use the devices of the daemon at this socket (see `offmap daemon`)
    #[arg(long, value_name = "PATH",
          conflicts_with_all = ["device", "profile", "faults", "seed", "files"])]
    pub connect: Option<PathBuf>,

    /// An interface that is there, to stand for a device; once for each device
    #[arg(long, value_name = "NAME")]
    pub ifname: Vec<String>,

    /// Offload maps of such names (* and ? stand for other characters) to a device, by its interface [default: the first]
    #[arg(long, value_name = "GLOB[=NAME]")]
    pub offload_map: Vec<String>,

    /// Offload all maps that can be to the first device; the kernel makes the others
    #[arg(long)]
    pub all_maps: bool,

    /// What devices admit: a built-in profile or a file (see `offmap profile`)
    #[arg(long, value_name = "NAME|FILE", default_value = "offmap")]
    pub profile: String,

    /// Have devices of this process do wrong what this fault plan says (see docs/faults.md)
    #[arg(long, value_name = "FILE")]
    pub faults: Option<PathBuf>,

    /// Seed of the fault plan
    #[arg(long, value_name = "N", default_value_t = 1, requires = "faults")]
    pub seed: u64,

    /// What the program's descriptors are [default: kernel where that is allowed]
    #[arg(long, value_enum, value_name = "WHAT")]
    pub files: Option<RunFiles>,

    /// Do not say on stderr why a map was refused
    #[arg(long)]
    pub quiet: bool,

    /// Print to stderr how many calls were answered
    #[arg(long)]
    pub stats: bool,

    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "PROGRAM [ARGS]")]
    pub program: Vec<OsString>,
}

/// Arguments of `offmap daemon`.
#[derive(Clone, Debug, Args)]
pub struct DaemonArgs {
    /// Where programs join; the file is made, readable and writable by you alone
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,

    /// Where a device is; once for each [default: inline]
    #[arg(long, value_name = "KIND", value_parser = device)]
    pub device: Vec<DeviceKind>,

    /// What devices admit: a built-in profile or a file (see `offmap profile`)
    #[arg(long, value_name = "NAME|FILE", default_value = "offmap")]
    pub profile: String,

    /// Have devices of this process do wrong what this fault plan says (see docs/faults.md)
    #[arg(long, value_name = "FILE")]
    pub faults: Option<PathBuf>,

    /// Seed of the fault plan
    #[arg(long, value_name = "N", default_value_t = 1, requires = "faults")]
    pub seed: u64,

    /// What descriptors of offloaded maps are [default: kernel where that is allowed]
    #[arg(long, value_enum, value_name = "WHAT")]
    pub files: Option<RunFiles>,
}

/// What stands for offloaded maps in a program.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum RunFiles {
    /// Small maps of the kernel
    Kernel,
    /// memfds
    Memory,
}

/// Arguments of `offmap device`.
#[derive(Clone, Debug, Args)]
pub struct DeviceArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: DeviceCommand,
}

/// What `offmap device` can do.
#[derive(Clone, Debug, Subcommand)]
pub enum DeviceCommand {
    /// List the PCI functions that are such a SmartNIC, and those that are bound to vfio-pci
    List {
        /// Print one JSON document instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Bind a PCI function to vfio-pci, so that --device vfio:ADDRESS reaches it (needs root)
    #[command(
        long_about = "Bind a PCI function to vfio-pci, so that --device vfio:ADDRESS reaches it (needs root).

A function that is no SmartNIC of this ABI, by its IDs, is refused, and so is one that a network interface, a mounted \
file system or swap uses; the sentence says what it is. The driver and the driver_override that it had are written to \
/run/offmap/bound, and `offmap device unbind` restores them."
    )]
    Bind {
        /// Its address, such as 0000:01:00.0
        address: String,

        /// Bind it whatever it is, and whoever uses it
        #[arg(long)]
        force: bool,
    },
    /// Take a PCI function from vfio-pci, and give it the driver that it had before (needs root)
    Unbind {
        /// Its address, such as 0000:01:00.0
        address: String,
    },
    /// Say what a device is and can do
    Info(DeviceInfoArgs),
    /// Show the tiers of a device's memory: their use, what is free and in how many pieces, and the maps in them
    Memory(DeviceInfoArgs),
    /// Show a map in a device's memory
    Map(DeviceMapArgs),
    /// Run the conformance suite on a device
    #[command(
        long_about = "Run the conformance suite on a device: registers, config space, queues, every command \
and status, DMA both ways, interrupts, the ordering rules, resets.

Each case runs with doorbells and with notify blocks, and says which part of docs/abi.md it tests when it \
fails. Emulated devices are built for each case as it wants them. Another device is taken as it is, and reset \
for each case: nothing that it holds is kept. A case that needs what that device lacks is skipped, and says why; \
a NIC of `offmap nic --memory 2M` has what most cases want.

With --faults each device of this process gets the plan before its case begins: what the suite says of a device \
that does wrong. A case then waits two seconds for any one thing, and not five.",
        after_long_help = "Exit status:
  0  every case passed or was skipped
  1  a case failed
  2  the command line or the fault plan is bad, or there is no such device

Examples:
  offmap device test
  offmap device test --faults plan.toml --seed 7
  offmap device test --device vfio-user:/tmp/nic.sock --json
  offmap device test --device threaded --only ordering
  offmap device test --list"
    )]
    Test(DeviceTestArgs),
    /// Print the device ABI as a C header, for C11 and C++11
    ///
    /// It has every register, command, status, flag and structure of docs/abi.md, and asserts the size and the
    /// offsets of each structure.
    Header,
}

/// Arguments of `offmap device info` and `offmap device memory`.
#[derive(Clone, Debug, Args)]
pub struct DeviceInfoArgs {
    /// Where the device is, as for `offmap device test`
    #[arg(long, value_name = "KIND", value_parser = device)]
    pub device: DeviceKind,

    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `offmap device map`.
#[derive(Clone, Debug, Args)]
pub struct DeviceMapArgs {
    /// The map's handle, or its name
    #[arg(value_name = "ID|NAME")]
    pub map: String,

    /// Where the device is, as for `offmap device test`
    #[arg(long, value_name = "KIND", value_parser = device)]
    pub device: DeviceKind,

    /// Show how its table is filled, and how many buckets a lookup reads
    #[arg(long)]
    pub layout: bool,

    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `offmap device test`.
#[derive(Clone, Debug, Args)]
pub struct DeviceTestArgs {
    /// Where the device is
    ///
    /// emulated or inline: on the thread that waits for it; threaded: on a thread of its own;
    /// vfio-user:PATH: in another process, which `offmap nic --socket PATH` started;
    /// vfio:ADDRESS: a PCI function that `offmap device bind` gave to vfio-pci
    #[arg(long, value_name = "KIND", default_value = "emulated", value_parser = device)]
    pub device: DeviceKind,

    /// Run the case of that name, the cases of that group, or those with that in their names
    #[arg(long, value_name = "NAME")]
    pub only: Option<String>,

    /// Print the cases with the part of docs/abi.md that each tests, and run none
    #[arg(long, conflicts_with = "json")]
    pub list: bool,

    /// The longest that a case may take without an answer of the device, in seconds, and ten times that in all;
    /// after one that takes longer none is run
    #[arg(long, value_name = "SECONDS", default_value_t = 60, alias = "deadline",
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub case_limit: u64,

    /// Have the device do wrong what this fault plan says (see docs/faults.md)
    #[arg(long, value_name = "FILE", conflicts_with = "list")]
    pub faults: Option<PathBuf>,

    /// Seed of the fault plan
    #[arg(long, value_name = "N", default_value_t = 1, requires = "faults")]
    pub seed: u64,

    /// Print to stderr how often each command was sent and each status got
    #[arg(long)]
    pub stats: bool,

    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `offmap nic`.
#[derive(Clone, Debug, Args)]
pub struct NicArgs {
    /// Where clients connect; the file is made, readable and writable by you alone
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,

    /// Device memory: bytes, or with K, M, G or T
    #[arg(long, value_name = "SIZE", default_value = "4G", value_parser = size)]
    pub memory: u64,

    /// A tier of device memory, the fastest first: NAME=SIZE, and a check code, as in sram=4M,secded.
    /// Repeated for each; --memory is then their sum
    #[arg(long = "tier", value_name = "NAME=SIZE[,none|parity|secded]", value_parser = tier,
          conflicts_with = "memory")]
    pub tiers: Vec<TierConfig>,

    /// I/O queue pairs, 1 to 1,023
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub queue_pairs: u16,

    /// Greatest queue depth: a power of two from 2 to 32,768
    #[arg(long, value_name = "N", default_value_t = 4096)]
    pub queue_depth: u32,

    /// Network ports, 1 to 256; maps are shared between them
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=256))]
    pub ports: u32,

    /// MSI-X vectors, 1 to 2,048
    #[arg(long, value_name = "N", default_value_t = 17)]
    pub vectors: u16,

    /// Most maps at a time, 1 to 65,535
    #[arg(long, value_name = "N", default_value_t = 1024)]
    pub maps: u32,

    /// Most entries of one map, 1 to 2,147,483,648
    #[arg(long, value_name = "N", default_value_t = 1 << 31)]
    pub map_entries: u32,

    /// Most entries of all maps together; 0: as many as fit into the memory
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub total_entries: u64,

    /// How often in a row the device finds no work before it sleeps until it is woken
    #[arg(long, value_name = "N", default_value_t = 8192)]
    pub polls: u32,

    /// How long it sleeps then before it looks by itself, in microseconds, 1 to 60,000,000; more than the ABI's 1,000 is for tests
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub look_again_us: u32,

    /// How long a client that has connected may take to say VERSION, in milliseconds, 1 to 3,600,000;
    /// then it is dropped, and the next one has its turn
    #[arg(long, value_name = "MS", default_value_t = 3000,
          value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
    pub version_timeout_ms: u64,

    /// Keep maps when a client leaves, save them to FILE at the end, and begin with what is there
    #[arg(long, value_name = "FILE")]
    pub state: Option<PathBuf>,

    /// Have the device do wrong what this fault plan says (see docs/faults.md)
    #[arg(long, value_name = "FILE")]
    pub faults: Option<PathBuf>,

    /// Seed of the fault plan
    #[arg(long, value_name = "N", default_value_t = 1, requires = "faults")]
    pub seed: u64,

    /// Say at the end what the device has counted: KICKs, times that it slept, commands cut short
    #[arg(long)]
    pub stats: bool,
}

/// A rule of placement.
fn placement(text: &str) -> Result<Placement, String> {
    match text.rsplit_once('=') {
        Some((maps, tier)) if !tier.is_empty() => Ok(Placement {
            maps: maps.into(),
            tier: tier.into(),
        }),
        _ => Err(format!("{text:?} is no placement, such as flows*=sram")),
    }
}

/// A memory tier.
fn tier(text: &str) -> Result<TierConfig, String> {
    let wrong = || format!("{text:?} is no tier, such as sram=4M or dram=4G,secded");
    let (name, rest) = text.split_once('=').ok_or_else(wrong)?;
    let (bytes, code) = rest.split_once(',').unwrap_or((rest, "none"));
    let codes = [Ecc::None, Ecc::Parity, Ecc::Secded];
    let ecc = codes.into_iter().find(|ecc| ecc.name() == code);
    let ecc = ecc.ok_or_else(|| format!("{code:?} is no check code: none, parity or secded"))?;
    Ok(TierConfig::new(name, size(bytes)?).with_ecc(ecc))
}

/// A number of bytes, or of their multiples by 1,024.
fn size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.as_bytes() {
        [.., b'K' | b'k'] => (&text[..text.len() - 1], 10),
        [.., b'M' | b'm'] => (&text[..text.len() - 1], 20),
        [.., b'G' | b'g'] => (&text[..text.len() - 1], 30),
        [.., b'T' | b't'] => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| format!("{text:?} is no size, such as 512M or 4G"))?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| format!("{text} is more than can be counted"))
}

/// Arguments of `offmap diff`.
#[derive(Clone, Debug, Args)]
pub struct DiffArgs {
    /// Ends after this many calls, at the end of a sequence
    #[arg(long, value_name = "N", default_value_t = 200_000)]
    pub calls: u64,

    /// Ends after this many seconds, if that comes first
    #[arg(long, value_name = "SECONDS")]
    pub seconds: Option<u64>,

    /// Seed of the calls; the same seed makes the same calls
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,

    /// Part I of N of a campaign, from 1: N processes do what one would
    #[arg(long, value_name = "I/N", default_value = "1/1", value_parser = shard)]
    pub shard: (u64, u64),

    /// Runs this one sequence, which a difference named
    #[arg(long, value_name = "N")]
    pub sequence: Option<u64>,

    /// Leave out the matrix of how often each command came to each result on each map type
    #[arg(long)]
    pub brief: bool,

    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `offmap sim`.
#[derive(Clone, Debug, Args)]
pub struct SimArgs {
    /// Seeds to run
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = seeds)]
    pub seeds: u64,

    /// The first seed
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    pub from: u64,

    /// Run this one seed: short for --seeds 1 --from SEED
    #[arg(long, value_name = "SEED", conflicts_with_all = ["seeds", "from", "shard", "seconds"])]
    pub seed: Option<u64>,

    /// Part I of N of a campaign, from 1: the seeds are dealt to the parts in turn
    #[arg(long, value_name = "I/N", default_value = "1/1", value_parser = shard)]
    pub shard: (u64, u64),

    /// Begin no seed after this many seconds. Making failures small comes on top: about 20 s for each
    /// of the first three, nothing for the others
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub seconds: Option<u64>,

    /// Which seeds draw a fault plan of their own for the device
    #[arg(long, value_name = "SHARE", value_enum, default_value_t = FaultPlans::Half,
          conflicts_with = "faults")]
    pub fault_plans: FaultPlans,

    /// Have the device of every seed do wrong what this fault plan says (see docs/faults.md)
    #[arg(long, value_name = "FILE")]
    pub faults: Option<PathBuf>,

    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

/// Seeds that draw a fault plan.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum FaultPlans {
    /// No seed
    None,
    /// Every other seed, about: the seed itself decides
    Half,
    /// Every seed
    All,
}

/// A number that is not 0, since nothing would be tried.
fn positive(text: &str, nothing: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(0) => Err(format!(
            "{nothing} would try nothing; it has to be 1 at least"
        )),
        Ok(number) => Ok(number),
        Err(error) => Err(error.to_string()),
    }
}

fn seeds(text: &str) -> Result<u64, String> {
    positive(text, "a campaign of 0 seeds")
}

fn seconds(text: &str) -> Result<u64, String> {
    positive(text, "a campaign of 0 seconds")
}

/// `I/N`.
fn shard(text: &str) -> Result<(u64, u64), String> {
    let numbers = text.split_once('/').and_then(|(part, of)| {
        let (part, of) = (part.parse().ok()?, of.parse().ok()?);
        (1 <= part && part <= of).then_some((part, of))
    });
    numbers.ok_or_else(|| format!("{text:?} is not a part of a whole, such as 2/8"))
}

/// Arguments of `offmap profile`.
#[derive(Clone, Debug, Args)]
pub struct ProfileArgs {
    /// What to do with them.
    #[command(subcommand)]
    pub command: ProfileCommand,

    /// Print one JSON document instead of tables
    #[arg(long, global = true)]
    pub json: bool,
}

/// What `offmap profile` can do.
#[derive(Clone, Debug, Subcommand)]
pub enum ProfileCommand {
    /// List the built-in profiles
    List,
    /// Show what a profile admits and how it behaves
    Show {
        /// A built-in profile, or a file
        #[arg(value_name = "NAME|FILE")]
        profile: String,
        /// Print the file of a built-in profile, to start one's own from
        #[arg(long, conflicts_with = "json")]
        toml: bool,
    },
    /// Check a profile file, and show it
    Check {
        /// The file
        file: PathBuf,
    },
}

/// Arguments of `offmap demo`.
#[derive(Clone, Debug, Args)]
pub struct DemoArgs {
    /// Compiled BPF object to take the maps from [default: a small XDP filter built into offmap]
    #[arg(long, value_name = "FILE.o")]
    pub object: Option<PathBuf>,

    /// Print one JSON document instead of a table
    #[arg(long)]
    pub json: bool,

    /// Seed of the workload; a run with the same seed makes the same calls
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,

    /// Random operations for each map, before it is filled
    #[arg(long, value_name = "N", default_value_t = 20_000,
          value_parser = clap::value_parser!(u64).range(0..=1_000_000_000))]
    pub operations: u64,

    /// What the device admits: a built-in profile or a file (see `offmap profile`)
    #[arg(long, value_name = "NAME|FILE", default_value = "offmap")]
    pub profile: String,

    /// Place maps whose names are like GLOB in that tier of device memory; repeated for each rule, of which
    /// the first that fits counts
    #[arg(long, value_name = "GLOB=TIER", value_parser = placement)]
    pub place: Vec<Placement>,

    /// Have the device do wrong what this fault plan says (see docs/faults.md); --seed seeds it too
    #[arg(long, value_name = "FILE")]
    pub faults: Option<PathBuf>,

    /// Model what the operations would take on hardware: a built-in timing profile or a file (see docs/timing.md)
    ///
    /// The built-in ones are nfp6000 and pcie5x16. For a device in this process, without a fault plan.
    #[arg(long, value_name = "NAME|FILE", conflicts_with = "faults")]
    pub timing: Option<String>,

    /// Print what the queues did to stderr: commands by kind and end, times in flight, events
    #[arg(long)]
    pub stats: bool,

    /// Write the same to FILE as OpenMetrics text (see docs/metrics.md)
    #[arg(long, value_name = "FILE")]
    pub metrics: Option<PathBuf>,

    /// Where the device runs
    ///
    /// inline: on the thread that waits for it, deterministically; threaded: on a thread of its own;
    /// vfio-user:PATH: in another process, which `offmap nic --socket PATH` started;
    /// vfio:ADDRESS: on the PCI bus, bound to vfio-pci (see `offmap device`)
    #[arg(long, value_name = "KIND", default_value = "inline", value_parser = device)]
    pub device: DeviceKind,
}

/// Where a device is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DeviceKind {
    /// On the thread that waits for it: deterministic.
    Inline,
    /// On a thread of its own, which polls and then parks.
    Threaded,
    /// Behind a vfio-user socket.
    VfioUser(PathBuf),
    /// At a PCI address, bound to vfio-pci.
    Vfio(String),
}

pub(crate) fn device(text: &str) -> Result<DeviceKind, String> {
    match text.split_once(':') {
        None if text == "inline" || text == "emulated" => Ok(DeviceKind::Inline),
        None if text == "threaded" => Ok(DeviceKind::Threaded),
        Some(("vfio-user", path)) if !path.is_empty() => Ok(DeviceKind::VfioUser(path.into())),
        Some(("vfio", address)) if !address.is_empty() => Ok(DeviceKind::Vfio(address.into())),
        _ => Err("a device is emulated, inline, threaded, vfio-user:PATH or vfio:ADDRESS".into()),
    }
}
