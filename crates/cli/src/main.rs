//! The `offmap` command.
#![forbid(unsafe_code)]

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use offmap_cli::args::{
    Cli, Command, DemoArgs, DeviceCommand, DeviceTestArgs, DiffArgs, NicArgs, RunArgs, SimArgs,
};
use offmap_cli::bench::{self, BenchArgs};
use offmap_cli::demo::{self, DemoError, Progress};
use offmap_cli::device::{self, test};
use offmap_cli::diff;
use offmap_cli::log::Log;
use offmap_cli::model::{self, ModelArgs, ModelCommand};
use offmap_cli::nic::{self, NicError};
use offmap_cli::profile;
use offmap_cli::run;
use offmap_cli::sim;
use offmap_cli::stats;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;

const DISAGREED: u8 = 1;
const BAD_INPUT: u8 = 2;

fn main() -> ExitCode {
    // Not for people: how `offmap run` has a process become the program.
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == "run")
        && arguments.next().is_some_and(|second| second == run::LAUNCH)
    {
        return ExitCode::from(offmap_run::launch_from(&arguments.collect::<Vec<_>>()));
    }
    match Cli::parse().command {
        Command::Demo(args) => demo(&args),
        Command::Diff(args) => diff(&args),
        Command::Bench(args) => measure(&args),
        Command::Sim(args) => simulate(&args),
        Command::Model(args) => plan(&args),
        Command::Nic(args) => serve(&args),
        Command::Run(args) => run_program(&args),
        Command::Daemon(args) => match run::daemon(&args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                let code = match error.is_input() {
                    true => BAD_INPUT,
                    false => DISAGREED,
                };
                fail(&error.to_string(), code)
            }
        },
        Command::Device(args) => match args.command {
            DeviceCommand::Test(args) => test_device(&args),
            command => bus(&command),
        },
        Command::Profile(args) => match profile::run(&args) {
            Ok(text) => print(&text, ExitCode::SUCCESS),
            Err(error) => fail(&error.to_string(), BAD_INPUT),
        },
    }
}

/// Exit status where the program was not run.
const NOT_RUN: u8 = 125;

fn run_program(args: &RunArgs) -> ExitCode {
    match run::run(args) {
        Ok((ended, files)) => {
            if args.stats {
                let counts = ended.counts;
                run::say(&format!(
                    "{} calls answered, {} left to the kernel, {} maps offloaded, descriptors by {}",
                    counts.answered,
                    counts.passed_on,
                    counts.maps,
                    match files {
                        Some(offmap_run::Files::Kernel) => "the kernel",
                        Some(offmap_run::Files::Memory) => "memfds",
                        None => "the daemon's choice",
                    }
                ));
            }
            ExitCode::from(ended.status)
        }
        Err(error) => fail(&error.to_string(), NOT_RUN),
    }
}

fn bus(command: &DeviceCommand) -> ExitCode {
    match device::run(command) {
        Ok(text) => print(&text, ExitCode::SUCCESS),
        Err(error) => {
            let code = match error.is_input() {
                true => BAD_INPUT,
                false => DISAGREED,
            };
            fail(&error.to_string(), code)
        }
    }
}

fn demo(args: &DemoArgs) -> ExitCode {
    let mut bar = Bar::new();
    let report = demo::run(args, &mut bar);
    bar.0.finish_and_clear();
    let report = match report {
        Ok(report) => report,
        Err(error) => {
            let code = match error {
                DemoError::Object(_)
                | DemoError::Profile(_)
                | DemoError::Faults(_)
                | DemoError::Timing(_)
                | DemoError::TimingElsewhere
                | DemoError::FaultsElsewhere => BAD_INPUT,
                _ => DISAGREED,
            };
            return fail(&error.to_string(), code);
        }
    };
    let text = if args.json {
        match report.json() {
            Ok(text) => text,
            Err(error) => return fail(&error.to_string(), DISAGREED),
        }
    } else {
        report.text()
    };
    if args.stats {
        // As with progress: nothing is left to be done when stderr is closed.
        let _ = write!(std::io::stderr(), "{}", stats::text(&report.stats));
    }
    let code = match &args.metrics {
        Some(path) => match stats::write_metrics(path, demo::NIC, &report.stats) {
            Ok(()) => verdict(report.agree),
            Err(sentence) => fail(&sentence, DISAGREED),
        },
        None => verdict(report.agree),
    };
    print(&text, code)
}

fn diff(args: &DiffArgs) -> ExitCode {
    let bar = Bar::new().0;
    bar.set_length(args.calls);
    bar.set_message("bpf(2) calls");
    let compared = diff::compare(args, &mut |calls| bar.set_position(calls));
    bar.finish_and_clear();
    let document = match compared {
        Ok(document) => document,
        Err(error) => return fail(&error.to_string(), BAD_INPUT),
    };
    let text = match args.json {
        false => document.text(!args.brief),
        true => match serde_json::to_string_pretty(&document) {
            Ok(text) => text + "\n",
            Err(error) => return fail(&error.to_string(), DISAGREED),
        },
    };
    print(&text, verdict(document.differences == 0))
}

fn measure(args: &BenchArgs) -> ExitCode {
    if args.list {
        return print(&bench::list(args), ExitCode::SUCCESS);
    }
    let mut bar = Bar::with("{msg:20!} {wide_bar} {percent:>3}%, {eta} left");
    let measured = bench::bench(args, &mut bar);
    bar.0.finish_and_clear();
    match measured {
        Ok(outcome) => print(&outcome.text, verdict(!outcome.slower)),
        Err(error) => {
            let code = if error.is_input() {
                BAD_INPUT
            } else {
                DISAGREED
            };
            fail(&error.to_string(), code)
        }
    }
}

fn plan(args: &ModelArgs) -> ExitCode {
    let bar = Bar::with("{msg:20!} {wide_bar} {pos}/{len}, {eta} left");
    let planned = match &args.command {
        Some(ModelCommand::Merge(args)) => model::run_merge(args),
        None => model::run(&args.run, &bar),
    };
    bar.0.finish_and_clear();
    match planned {
        Ok(text) => print(&text, ExitCode::SUCCESS),
        Err(error) => {
            let code = if error.is_input() {
                BAD_INPUT
            } else {
                DISAGREED
            };
            fail(&error.to_string(), code)
        }
    }
}

fn simulate(args: &SimArgs) -> ExitCode {
    let bar = Bar::new().0;
    let seeds = args.seed.map_or(args.seeds, |_| 1);
    bar.set_length(seeds.div_ceil(args.shard.1));
    bar.set_message("seeds");
    let simulated = sim::simulate(args, &mut |seeds| bar.set_position(seeds));
    bar.finish_and_clear();
    let document = match simulated {
        Ok(document) => document,
        Err(error) => return fail(&error.to_string(), BAD_INPUT),
    };
    let text = match args.json {
        false => document.text(),
        true => match serde_json::to_string_pretty(&document) {
            Ok(text) => text + "\n",
            Err(error) => return fail(&error.to_string(), DISAGREED),
        },
    };
    print(&text, verdict(document.holds()))
}

fn serve(args: &NicArgs) -> ExitCode {
    // Clients come and go for as long as the process runs: what happens is said as it happens.
    let log = Log::new(std::io::stderr());
    let served = nic::run(args, &mut |sentence| log.tell(sentence));
    drop(log);
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(
            error @ (NicError::Serve(_)
            | NicError::Option { .. }
            | NicError::Faults(_)
            | NicError::State(_)
            | NicError::Restore(_)),
        ) => fail(&error.to_string(), BAD_INPUT),
        Err(error) => fail(&error.to_string(), DISAGREED),
    }
}

fn test_device(args: &DeviceTestArgs) -> ExitCode {
    if args.list {
        return match test::list(args) {
            Ok(text) => print(&text, ExitCode::SUCCESS),
            Err(error) => fail(&error.to_string(), BAD_INPUT),
        };
    }
    let json = args.json;
    // A suite takes a while: each case is told as it ends.
    let report = test::run(args, &mut |case| {
        if !json {
            print(&case.text(), ExitCode::SUCCESS);
        }
    });
    let report = match report {
        Ok(report) => report,
        Err(error) => return fail(&error.to_string(), BAD_INPUT),
    };
    if args.stats {
        let _ = write!(std::io::stderr(), "{}", report.stats());
    }
    let text = match json {
        false => report.text(),
        true => match serde_json::to_string_pretty(&report) {
            Ok(text) => text + "\n",
            Err(error) => return fail(&error.to_string(), DISAGREED),
        },
    };
    print(&text, verdict(report.failed == 0))
}

fn verdict(agree: bool) -> ExitCode {
    ExitCode::from(if agree { 0 } else { DISAGREED })
}

/// Prints to stdout and ends with `code`.
fn print(text: &str, code: ExitCode) -> ExitCode {
    // Whoever stops reading has seen enough; the status still tells the result.
    let mut stdout = std::io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            fail(&format!("the report cannot be written: {error}"), DISAGREED)
        }
        _ => code,
    }
}

fn fail(sentence: &str, code: u8) -> ExitCode {
    // Nothing is left to be done when stderr is closed, too.
    let _ = writeln!(std::io::stderr(), "offmap: {sentence}");
    ExitCode::from(code)
}

/// A bar on stderr, which shows itself on a terminal only.
struct Bar(ProgressBar);

impl Bar {
    fn new() -> Self {
        Self::with("{msg:20!} {wide_bar} {percent:>3}%")
    }

    fn with(template: &str) -> Self {
        let style =
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        Self(ProgressBar::new(0).with_style(style))
    }
}

impl offmap_bench::Progress for Bar {
    fn begin(&mut self, turns: u64) {
        self.0.set_length(turns);
    }

    fn group(&mut self, name: &str) {
        self.0.set_message(name.to_owned());
    }

    fn turn(&mut self) {
        self.0.inc(1);
    }
}

impl model::Progress for Bar {
    fn begin(&self, points: u64) {
        self.0.set_length(points);
        self.0.set_message("points");
    }

    fn done(&self, points: u64) {
        // Threads tell in any order.
        self.0.set_position(points.max(self.0.position()));
    }
}

impl Progress for Bar {
    fn map(&mut self, name: &str, operations: u64) {
        self.0.reset();
        self.0.set_length(operations);
        self.0.set_message(name.to_owned());
    }

    fn advance(&mut self, operations: u64) {
        self.0.inc(operations);
    }
}
