//! Fault plans as files: what is read, what is refused and in which words, and the command that
//! takes one.

use offmap_emulator::faults::{Behaviour, Command as Op, Delay, FaultPlan, Rule, Site};
use std::path::Path;
use std::time::Duration;

fn parse(text: &str) -> Result<FaultPlan, String> {
    FaultPlan::parse(text, "p.toml").map_err(|e| e.to_string())
}

fn rule(body: &str) -> Result<FaultPlan, String> {
    let honest = "[[rule]]\nsite = \"step\"\nbehaviour = \"reset\"\nnth = 9\n";
    parse(&format!("format = 1\n{honest}\n[[rule]]\n{body}\n"))
}

#[test]
fn the_examples_of_the_guide_are_plans() {
    let guide = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/faults.md");
    let guide = std::fs::read_to_string(guide).unwrap();
    let mut examples = 0;
    let mut rest = guide.as_str();
    while let Some((_, after)) = rest.split_once("```toml\n") {
        let (example, after) = after.split_once("```").unwrap();
        let plan = parse(example).unwrap_or_else(|e| panic!("{e}\n{example}"));
        assert!(!plan.is_empty());
        examples += 1;
        rest = after;
    }
    assert_eq!(examples, 5);
    // The table names every behaviour and every site.
    for name in Behaviour::NAMES {
        assert!(guide.contains(&format!("`{name}`")), "{name}");
    }
    for site in Site::ALL {
        assert!(guide.contains(&format!("`{site}`")), "{site}");
    }
}

#[test]
fn a_file_says_what_the_builder_says() {
    let text = r#"
        format = 1
        ecc = true
        [[rule]]
        name = "one"
        site = "complete"
        queue = 3
        opcode = "BatchDump"
        map = 0x10002
        map_type = "LpmTrie"
        every = 4
        from = 2
        to = 90
        times = 5
        behaviour = "delay"
        ms = 7
        [[rule]]
        site = "register-write"
        register = 0x48
        probability = 0.25
        behaviour = "drop"
        [[rule]]
        site = "memory-read"
        nth = 3
        behaviour = "flip"
        bits = 2
        at = 9
    "#;
    let built = FaultPlan::new()
        .with_ecc()
        .and_then(|plan| {
            plan.with(
                Rule::new(
                    Site::Complete,
                    Behaviour::Delay(Delay::Time(Duration::from_millis(7))),
                )
                .named("one")
                .on_queue(offmap_driver::QueueId(3))
                .of(Op::find("BatchDump").unwrap())
                .on_map(offmap_driver::MapHandle(0x10002))
                .on_map_type(offmap_abi::MapType::LpmTrie)
                .every(4)
                .from(2)
                .to(90)
                .times(5),
            )
        })
        .and_then(|plan| {
            plan.with(
                Rule::new(Site::RegisterWrite, Behaviour::Drop)
                    .at_register(0x48)
                    .probability(0.25),
            )
        })
        .and_then(|plan| {
            plan.with(
                Rule::new(
                    Site::MemoryRead,
                    Behaviour::Flip {
                        bits: 2,
                        at: Some(9),
                    },
                )
                .nth(3),
            )
        });
    assert_eq!(parse(text), Ok(built.unwrap()));
}

#[test]
fn what_is_wrong_is_named_with_its_rule_and_field() {
    let drop_at = |words: &str| format!("site = \"complete\"\nbehaviour = \"drop\"\n{words}");
    for (body, expected) in [
        (
            drop_at("color = 3"),
            "line 10: rule 2, unknown field `color`",
        ),
        (drop_at("queue = -1"), "line 10: rule 2, invalid value"),
        (drop_at("queue = 1024"), "rule 2, queue: must be from 0"),
        (drop_at("nth = 0"), "rule 2, nth: must be at least 1"),
        (
            drop_at("nth = 2\nevery = 2"),
            "rule 2, every: contradicts nth",
        ),
        (
            drop_at("nth = 2\ntimes = 2"),
            "rule 2, times: contradicts nth",
        ),
        (
            drop_at("every = 2\nprobability = 0.5"),
            "rule 2, probability: contradicts every",
        ),
        (drop_at("probability = 0.0"), "rule 2, probability: is 0"),
        (drop_at("probability = 1.5"), "rule 2, probability: is 1.5"),
        (drop_at("probability = nan"), "rule 2, probability: is NaN"),
        (
            drop_at("from = 9\nto = 8"),
            "rule 2, to: is 8, which lies before from = 9",
        ),
        (
            drop_at("opcode = \"Lookdown\""),
            "rule 2, opcode: \"Lookdown\" is none; they are Nop",
        ),
        (
            drop_at("map_type = \"Heap\""),
            "rule 2, map_type: \"Heap\" is none; they are Hash",
        ),
        (
            drop_at("opcode = \"Lookup\"\nqueue = 0"),
            "rule 2, opcode: Lookup never comes on queue 0",
        ),
        (
            drop_at("register = 8"),
            "rule 2, register: no register is known at the site complete",
        ),
        (
            drop_at("bits = 1"),
            "rule 2, bits: the behaviour drop has no use for it",
        ),
        (
            drop_at("name = \"\""),
            "rule 2, name: must have 1 to 80 bytes",
        ),
        (
            "site = \"moon\"\nbehaviour = \"drop\"".into(),
            "rule 2, site: \"moon\" is none; they are fetch",
        ),
        (
            "site = \"step\"\nbehaviour = \"explode\"".into(),
            "rule 2, behaviour: \"explode\" is none; they are drop",
        ),
        (
            "site = \"step\"\nbehaviour = \"drop\"".into(),
            "rule 2, behaviour: drop has no meaning at the site step; it has one at fetch",
        ),
        (
            "site = \"step\"\nqueue = 1\nbehaviour = \"reset\"".into(),
            "rule 2, queue: no queue is known at the site step",
        ),
        (
            "site = \"complete\"\nbehaviour = \"delay\"".into(),
            "rule 2, steps: the behaviour delay needs steps, or ms",
        ),
        (
            "site = \"complete\"\nbehaviour = \"delay\"\nsteps = 1\nms = 1".into(),
            "rule 2, ms: contradicts steps",
        ),
        (
            "site = \"complete\"\nbehaviour = \"delay\"\nms = 60001".into(),
            "rule 2, ms: is 60001: it must be from 1 to 60,000",
        ),
        (
            "site = \"complete\"\nbehaviour = \"flip\"\nbits = 513".into(),
            "rule 2, bits: is 513: it must be from 1 to 512",
        ),
        (
            "site = \"complete\"\nbehaviour = \"flip\"\nbits = 1\nat = 512".into(),
            "rule 2, at: is 512: complete has bits 0 to 511",
        ),
        (
            "site = \"complete\"\nbehaviour = \"tear\"\nbytes = 64".into(),
            "rule 2, bytes: is 64",
        ),
        (
            "site = \"complete\"\nbehaviour = \"reorder\"".into(),
            "rule 2, behind: the behaviour reorder needs it",
        ),
        (
            "site = \"fetch\"\nopcode = \"Lookup\"\nbehaviour = \"no-memory\"".into(),
            "rule 2, opcode: Lookup needs no memory",
        ),
        (
            "site = \"memory-read\"\nqueue = 0\nbehaviour = \"slow\"\nsteps = 1".into(),
            "rule 2, queue: the site memory-read sees the commands of I/O queues only",
        ),
        ("behaviour = \"drop\"".into(), "missing field `site`"),
    ] {
        let error = rule(&body).unwrap_err();
        assert!(error.starts_with("p.toml"), "{error}");
        assert!(
            error.contains(expected),
            "{body}:\n{error}\nlacks {expected}"
        );
        assert!(!error.contains('\n'), "{error}");
    }
    let ecc =
        "format = 1\necc = true\n[[rule]]\nsite = \"memory-read\"\nbehaviour = \"flip\"\nbits = 3";
    assert!(
        parse(ecc)
            .unwrap_err()
            .contains("rule 1, bits: is 3: it must be from 1 to 2 with ecc")
    );
    assert!(parse("format = 2").unwrap_err().contains("format: is 2"));
    assert!(parse("").unwrap_err().contains("missing field `format`"));
    assert!(parse("format = 1").unwrap().is_empty());
    assert!(
        parse("format = 1\nmode = 2")
            .unwrap_err()
            .contains("line 2: unknown field `mode`")
    );
    let many = "[[rule]]\nsite = \"step\"\nbehaviour = \"reset\"\n".repeat(257);
    let error = parse(&format!("format = 1\n{many}")).unwrap_err();
    assert!(
        error.contains("rule 257, rule: a plan has at most 256 rules"),
        "{error}"
    );
    let missing = FaultPlan::load(Path::new("/nowhere/plan.toml")).unwrap_err();
    assert!(
        missing
            .to_string()
            .starts_with("/nowhere/plan.toml: cannot be read: ")
    );
    let endless = FaultPlan::load(Path::new("/dev/zero"))
        .unwrap_err()
        .to_string();
    assert!(endless.contains("longer than 256 KiB"), "{endless}");
}
