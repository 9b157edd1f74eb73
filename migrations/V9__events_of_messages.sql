-- A message may hold several events. Its outcome says which of them it inserted into gapless.stored_events, so that the
-- loss of one of them is found.
-- Adds a nullable column, a type and a function only; a daemon of the version before may still run, because it decodes
-- messages of one event only.

-- Null: event 0 if the state is `stored`, otherwise none. (In an outcome `removed` of an earlier version: event 0 or none.)
-- A message with one event has null, which takes no room in its row.
alter table gapless.outcomes add column inserted int4multirange;

create type gapless.new_outcome_of_events as (
    "offset" int8, event_id int8, message_time timestamptz, position_id int4, state text, payload_digest uuid,
    inserted int4multirange
);

-- gapless.write_few for outcomes that say which events their messages inserted: that function sets the transaction up and
-- inserts the events.
create function gapless.write_small_batch(
    events gapless.new_event[], outcomes gapless.new_outcome_of_events[], moves gapless.position_move[], tenure int8,
    statement_ms int4, lock_ms int4
) returns void language plpgsql as $$
declare
    outcomes_inserted int8;
begin
    perform gapless.write_few(events, '{}', '{}', tenure, statement_ms, lock_ms);
    insert into gapless.outcomes ("offset", event_id, message_time, position_id, state, payload_digest, inserted)
    select o."offset", o.event_id, o.message_time, o.position_id, o.state::gapless.handling_state, o.payload_digest,
        o.inserted
    from unnest(outcomes) o;
    get diagnostics outcomes_inserted = row_count;
    if outcomes_inserted <> cardinality(outcomes) then
        raise exception 'inserted % of % outcomes; is there a trigger, rule or policy on schema gapless?',
            outcomes_inserted, cardinality(outcomes) using errcode = 'GL002';
    end if;
    if gapless.advance(moves, tenure) <> cardinality(moves) then
        raise exception 'a position is not where it was expected' using errcode = 'GL001';
    end if;
end $$;
