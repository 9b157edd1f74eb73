//! Objects that users add to the ledger's tables are not differences: they are listed, and judged by their effect on
//! rows.

use crate::support::{Database, Event, Gapless, Ledger, Topic};

#[test]
fn objects_added_by_users_are_listed_and_do_not_count_as_differences() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 5);
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    let role = database.name();
    database.execute(&format!(
        "create role {role};
         create index by_block on gapless.stored_events (block_number);
         create function public.note() returns trigger language plpgsql as $$ begin return new; end $$;
         create trigger noted before insert on gapless.outcomes for each row execute function public.note();
         create rule quiet as on delete to gapless.gaps do instead nothing;
         alter table gapless.gaps enable row level security;
         create policy everything on gapless.gaps using (true);
         alter table gapless.stored_events add column note text;
         alter type gapless.gap_kind add value 'mine';
         create view gapless.mine as select 1 as one;
         alter table gapless.outcomes set (fillfactor = 90);
         grant select on gapless.events to {role}"
    ));
    ledger.send_events(0, 5);
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    let grant = format!("grant to {role}: select on 1 relations");
    Gapless::verb("check", &topic, &database).run().expect_code(0).expect_says(&[
        "index gapless.by_block on gapless.stored_events",
        "trigger noted on gapless.outcomes executes public.note()",
        "rule quiet on gapless.gaps",
        "policy everything on gapless.gaps",
        "column gapless.stored_events.note",
        "label mine of type gapless.gap_kind",
        "view gapless.mine",
        &grant,
    ]);
    Gapless::verb("verify", &topic, &database).run().expect_code(0);
    ledger.assert_complete(&database);
    database.execute("drop policy everything on gapless.gaps");
    database.drop_role(role);
}

#[test]
fn a_failing_user_trigger_halts_with_its_name_for_every_class_of_error() {
    for (body, error) in [
        // The name has no schema, and gapless runs with an empty search_path.
        ("insert into audit values (new.txn);", "42P01"),
        ("insert into public.audit values (new.txn);", "22001"),
        ("raise unique_violation;", "23505"),
        ("insert into public.denied values (new.txn);", "23514"),
    ] {
        let (topic, database) = (Topic::new(1), Database::new());
        let mut ledger = Ledger::of(&topic);
        ledger.send_events(0, 5);
        Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
        database.execute(
            "create table public.audit (txn varchar(3)); create table public.denied (txn text check (txn is null))",
        );
        database.before_each_event(body);
        for count in [60, 300] {
            let events: Vec<Event> = (0..count).map(|_| ledger.event()).collect();
            topic.send(&events);
            let ended = Gapless::daemon(&topic, &database).until_end().run().expect_code(3);
            let says = [error, "trigger before_each_event on gapless.stored_events", "public.before_each_event"];
            ended.expect_says(&says).expect_says(&["search_path"]);
        }
        assert_eq!((database.count("dead_letters"), database.count("events")), (0, 5), "{body}");
        database.execute("drop function public.before_each_event cascade");
        Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
        assert_eq!(database.count("events"), 365, "{body}");
        database.assert_accounting();
    }
}

#[test]
fn a_trigger_or_rule_that_drops_rows_is_named() {
    for (added, name) in [
        (
            "create function public.drop_row() returns trigger language plpgsql as $$ begin return null; end $$;
             create trigger dropping before insert on gapless.outcomes for each row execute function public.drop_row()",
            "trigger dropping on gapless.outcomes",
        ),
        (
            "create rule nothing as on update to gapless.positions do instead nothing",
            "rule nothing on gapless.positions",
        ),
    ] {
        let (topic, database) = (Topic::new(1), Database::new());
        Gapless::verb("migrate", &topic, &database).run().expect_code(0);
        topic.send((0..3).map(|number| Event::numbered(94, number)));
        database.execute(added);
        Gapless::daemon(&topic, &database).until_end().run().expect_code(3).expect_says(&[name]);
        assert_eq!(database.count("events"), 0);
    }
}

#[test]
fn a_dropped_late_change_prevents_the_commit_and_the_trigger_is_named() {
    for (added, name) in [
        (
            "create rule lost as on insert to gapless.late_offsets do instead nothing",
            "rule lost on gapless.late_offsets",
        ),
        (
            "create table public.elsewhere (like gapless.late_offsets);
             create rule lost as on insert to gapless.late_offsets do instead insert into public.elsewhere values (new.*)",
            "rule lost on gapless.late_offsets",
        ),
        (
            "create function public.drop_row() returns trigger language plpgsql as $$ begin return null; end $$;
             create trigger lost before insert on gapless.late_offsets for each row execute function public.drop_row()",
            "trigger lost on gapless.late_offsets executes public.drop_row()",
        ),
        (
            "create function public.drop_row() returns trigger language plpgsql as $$ begin return null; end $$;
             create trigger lost before update on gapless.positions for each row
             when (new.late_revision <> old.late_revision) execute function public.drop_row()",
            "trigger lost on gapless.positions executes public.drop_row()",
        ),
    ] {
        let (topic, database) = (Topic::new(1), Database::new());
        let event = Event::numbered(96, 0);
        topic.send([event.clone()]);
        Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
        database.execute(added);
        topic.send([Event { removed: true, ..event }]);
        Gapless::daemon(&topic, &database).until_end().run().expect_code(3).expect_says(&[name]);
        let removed = "select count(*) from gapless.events where status = 'removed'";
        assert_eq!((database.value::<i64>(removed), database.count("late_changes")), (0, 0), "{added}");
        database.execute(
            "drop rule if exists lost on gapless.late_offsets; drop function if exists public.drop_row cascade",
        );
        Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
        assert_eq!((database.value::<i64>(removed), database.count("late_changes")), (1, 1), "{added}");
    }
}

#[test]
fn a_unique_key_added_by_a_user_is_named_and_not_mistaken_for_another_writer() {
    let (topic, database) = (Topic::new(1), Database::new());
    Gapless::verb("migrate", &topic, &database).run().expect_code(0);
    database.execute("create unique index one_a_block on gapless.stored_events (block_number)");
    let event = |number| Event { block_number: 7, ..Event::numbered(95, number) };
    topic.send((0..100).map(event));
    let ended = Gapless::daemon(&topic, &database).until_end().run().expect_code(3);
    ended.expect_says(&["one_a_block", "gapless did not make"]);
    assert_eq!((database.count("events"), database.count("dead_letters")), (0, 0));
}
