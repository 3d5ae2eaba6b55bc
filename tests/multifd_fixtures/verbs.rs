//! What the verbs print.

use migwire::report::{Reading, dump};

use crate::{PAGE, Story, json, migwire, out};

#[test]
fn the_release_is_among_those_that_may_have_written_it() {
    for story in Story::recorded() {
        let (code, report) = json(&["inspect", story.path.to_str().unwrap()]);
        assert_eq!(code, 0, "{report}");
        let together = &report["files"][0]["together"];
        let found: Vec<&str> =
            together["writer"]["releases"].as_array().unwrap().iter().map(|r| r.as_str().unwrap()).collect();
        assert!(found.contains(&story.release().unwrap()), "{}: {found:?}", story.name);
        // Packets tell more than the main channel does.
        let expected = match story.release() {
            Some("5.2" | "7.2") => ["5.2", "8.1"],
            _ => ["9.0", "11.1"],
        };
        let range = |release: &&str| {
            let number = |text: &str| {
                let (major, minor) = text.split_once('.').unwrap();
                (major.parse::<u32>().unwrap(), minor.parse::<u32>().unwrap())
            };
            (number(expected[0])..=number(expected[1])).contains(&number(release))
        };
        assert!(found.iter().all(range), "{}: {found:?}", story.name);
    }
}

#[test]
fn dumps_tile_every_channel() {
    for story in Story::all() {
        let mut contents = story.open();
        let reading =
            Reading { page_size: Reading::default().page_size_of(&mut contents.parts), ..Reading::default() };
        assert_eq!(reading.page_size, Some(PAGE));
        for part in &mut contents.parts {
            let mut end = 0;
            let outcome = dump::dump(part, &reading, &mut |row| {
                assert_eq!(row.offset, end, "{}: {}", story.name, row.what);
                end += row.len;
                Ok(())
            });
            assert!(outcome.unwrap().error.is_none(), "{} {}", story.name, part.channel);
            assert_eq!(Some(end), part.size(), "{} {}", story.name, part.channel);
        }
    }
}

#[test]
fn dumps_and_summaries_read_like_this() {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../../fixtures/snapshots");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| {
        for (name, story) in [
            ("multifd-isapc-5.2", "qemu-5.2/isapc"),
            ("multifd-zlib-11.1", "qemu-11.1/zlib"),
            ("multifd-vfio-config-after-iter", "vfio/b4-11to11-on-config-after-iter"),
        ] {
            let path = Story::named(story).path;
            let text = |verb| {
                let output = migwire(&[verb, path.to_str().unwrap()]);
                out(&output).replace(path.to_str().unwrap(), story)
            };
            insta::assert_snapshot!(format!("dump-{name}"), text("dump"));
            insta::assert_snapshot!(format!("inspect-{name}"), text("inspect"));
            insta::assert_snapshot!(format!("verify-{name}"), text("verify"));
        }
    });
}
