//! Tests of case expansion, on a small example and on the shipped files.

use super::*;

const SAMPLE: &str = r#"
    group = "t"
    [variant.fast]
    about = "for the test"
    both.capabilities = ["x"]
    [[case]]
    kind = "direct"
    machine = ["none", "pc"]
    transport = "tcp"
    return_path = [true, false]
    guest = "idle"
    peers = "ring+1"
    short = "same"
    [[case]]
    kind = ["stock-to-standin", "standin-to-stock"]
    machine = "pc"
    transport = "unix"
    return_path = true
    guest = "dirty"
    variant = ["plain", "fast"]
    peers = "all"
    short = "all"
    [[case]]
    kind = "stock-to-proxy-to-stock"
    machine = "q35-newest"
    transport = "tcp"
    return_path = true
    guest = "idle"
    peers = "all"
"#;

fn builds(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

fn parse(text: &str) -> Result<Cases> {
    Cases::parse([("test", text)].into_iter())
}

fn shipped() -> Cases {
    Cases::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("cases")).unwrap()
}

pub(crate) fn sample_cells() -> Vec<Cell> {
    parse(SAMPLE).unwrap().cells(&builds(&["a", "b", "c"]))
}

#[test]
fn axes_are_multiplied_and_peers_spread() {
    let ids: Vec<String> = parse(SAMPLE).unwrap().cells(&builds(&["a", "b"])).iter().map(Cell::id).collect();
    let expected = "
        t/direct/none/tcp/rp/idle@a:b
        t/direct/none/tcp/rp/idle@b:a
        t/direct/none/tcp/norp/idle@a:b
        t/direct/none/tcp/norp/idle@b:a
        t/direct/pc/tcp/rp/idle@a:b
        t/direct/pc/tcp/rp/idle@b:a
        t/direct/pc/tcp/norp/idle@a:b
        t/direct/pc/tcp/norp/idle@b:a
        t/recv/pc/unix/rp/dirty@a:migwire
        t/recv/pc/unix/rp/dirty@b:migwire
        t/recv/pc/unix/rp/dirty/fast@a:migwire
        t/recv/pc/unix/rp/dirty/fast@b:migwire
        t/send/pc/unix/rp/dirty@migwire:a
        t/send/pc/unix/rp/dirty@migwire:b
        t/send/pc/unix/rp/dirty/fast@migwire:a
        t/send/pc/unix/rp/dirty/fast@migwire:b
        t/proxy/q35-newest/tcp/rp/idle@a:a
        t/proxy/q35-newest/tcp/rp/idle@a:b
        t/proxy/q35-newest/tcp/rp/idle@b:a
        t/proxy/q35-newest/tcp/rp/idle@b:b";
    assert_eq!(ids, expected.split_whitespace().collect::<Vec<_>>());
}

#[test]
fn one_build_is_its_own_ring() {
    let cells = parse(SAMPLE).unwrap().cells(&builds(&["a"]));
    assert!(cells.iter().any(|cell| cell.id() == "t/direct/pc/tcp/rp/idle@a:a"));
    assert!(parse(SAMPLE).unwrap().cells(&[]).is_empty());
}

#[test]
fn the_builds_of_a_cell_are_named_once() {
    let cells = sample_cells();
    let builds_of = |id: &str| cells.iter().find(|cell| cell.id() == id).unwrap().builds().join(" ");
    assert_eq!(builds_of("t/proxy/q35-newest/tcp/rp/idle@a:a"), "a");
    assert_eq!(builds_of("t/proxy/q35-newest/tcp/rp/idle@a:b"), "a b");
    assert_eq!(builds_of("t/recv/pc/unix/rp/dirty@b:migwire"), "b");
}

#[test]
fn senseless_combinations_are_mistakes_of_the_file() {
    let entry = |kind: &str, machine: &str, transport: &str, return_path: bool, guest: &str, more: &str| {
        parse(&format!(
            "group = 'x'\n[[case]]\nkind = '{kind}'\nmachine = '{machine}'\ntransport = '{transport}'\n\
             return_path = {return_path}\nguest = '{guest}'\n{more}"
        ))
    };
    assert!(entry("direct", "pc", "tcp", true, "dirty", "peers = 'all'").is_ok());
    let bad = [
        entry("direct", "pc", "exec", true, "idle", "peers = 'all'"),
        entry("direct", "none", "tcp", true, "dirty", "peers = 'all'"),
        entry("savevm", "pc", "tcp", false, "idle", "peers = 'all'"),
        entry("direct", "pc", "qcow2", false, "idle", "peers = 'all'"),
        entry("background-snapshot", "pc", "tcp", false, "dirty", "peers = 'all'"),
        entry("stock-to-proxy-to-stock", "pc", "file", false, "idle", "peers = 'all'"),
        entry("stock-to-standin", "pc", "tcp", true, "idle", "peers = 'ring+1'"),
        entry("direct", "pc", "tcp", true, "idle", "peers = 'some'"),
        entry("direct", "pc", "tcp", true, "idle", "peers = 'all'\nvariant = 'unknown'"),
        entry("direct", "pc", "tcp", true, "idle", "peers = 'all'\nspelling = 'mistake'"),
        entry("direct", "pc", "tcp", true, "idle", ""),
        entry("replay", "pc", "exec", false, "idle", "peers = 'all'"),
        entry("import", "pc", "unix", true, "idle", "peers = 'same'"),
        entry("trouble", "pc", "tcp", true, "dirty", "peers = 'same'"),
        entry("convert", "pc", "tcp", true, "dirty", "peers = 'same'"),
        entry(
            "direct",
            "pc",
            "tcp",
            true,
            "idle",
            "peers = 'all'\nvariant = 'x'\n[variant.x]\nabout = ''\ntrouble = 'cut'",
        ),
    ];
    for (number, result) in bad.iter().enumerate() {
        assert!(result.is_err(), "entry {number}");
    }
    let twice = SAMPLE.replace("q35-newest", "pc").replace("stock-to-proxy-to-stock", "direct");
    assert!(format!("{:#}", parse(&twice).unwrap_err()).contains("there twice"));
}

/// The ids of the shipped cases. A line may be added; none may change or go, because baselines, `expected.toml` and
/// other people's scripts name them.
#[test]
fn shipped_ids_never_change() {
    let known = include_str!("case_ids.txt");
    let cases = shipped();
    let ids: BTreeSet<&str> = cases.ids().collect();
    let known: BTreeSet<&str> = known.lines().collect();
    let gone: Vec<_> = known.difference(&ids).collect();
    let new: Vec<_> = ids.difference(&known).collect();
    assert!(gone.is_empty(), "these ids are gone: {gone:#?}");
    assert!(new.is_empty(), "add these to case_ids.txt: {new:#?}");
}

/// What the matrix promises: all pairs through the proxy, and every build in both roles of everything.
#[test]
fn shipped_cases_cover_every_build_in_every_role() {
    let names = builds(&["a", "b", "c", "d"]);
    let cells = shipped().cells(&names);
    for machine in ["none", "pc", "q35"] {
        let prefix = format!("precopy/proxy/{machine}/tcp/rp/");
        for from in &names {
            for to in &names {
                let met = |cell: &Cell| {
                    cell.case.id.starts_with(&prefix) && cell.source == *from && cell.destination == *to
                };
                assert!(cells.iter().any(met), "{prefix} {from} -> {to}");
            }
        }
    }
    // Two stand-ins need no build.
    let axes: BTreeSet<(String, &str)> = cells
        .iter()
        .filter(|cell| !cell.builds().is_empty())
        .flat_map(|cell| {
            let case = &cell.case;
            [
                case.machine.to_string(),
                case.transport.to_string(),
                case.guest.to_string(),
                format!("return path {}", case.return_path),
                format!("variant {}", case.variant.name),
            ]
            .map(|value| (value, case.kind.short()))
        })
        .collect();
    for (value, kind) in axes {
        for name in &names {
            let shows = |cell: &&Cell| {
                let case = &cell.case;
                case.kind.short() == kind
                    && (case.machine.to_string() == value
                        || case.transport.to_string() == value
                        || case.guest.to_string() == value
                        || format!("return path {}", case.return_path) == value
                        || format!("variant {}", case.variant.name) == value)
            };
            let as_source = cells.iter().filter(shows).any(|cell| cell.source == *name);
            let as_destination = cells.iter().filter(shows).any(|cell| cell.destination == *name);
            assert!(as_source || kind == "send", "{value} of {kind} never leaves {name}");
            assert!(as_destination || kind == "recv", "{value} of {kind} never arrives at {name}");
        }
    }
}
