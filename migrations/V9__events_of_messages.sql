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

-- The same as gapless.write_few, for outcomes that say which events their messages inserted.
create function gapless.write_small_batch(
    events gapless.new_event[], outcomes gapless.new_outcome_of_events[], moves gapless.position_move[], tenure int8,
    statement_ms int4, lock_ms int4
) returns void language plpgsql as $$
declare
    events_inserted int8;
    outcomes_inserted int8;
    setting text;
begin
    if current_setting('transaction_isolation') <> 'read committed'
        or current_setting('transaction_read_only') = 'on' and not pg_is_in_recovery()
        or current_setting('statement_timeout') <> '0'
            and current_setting('statement_timeout')::interval < make_interval(secs => statement_ms / 1000.0) then
        raise exception 'transactions of this role do not begin as read committed, read write, with time enough'
            using errcode = 'GL003';
    end if;
    if current_setting('synchronous_commit') not in ('on', 'remote_apply') then
        setting := set_config('synchronous_commit', 'on', true);
    end if;
    setting := set_config('lock_timeout', lock_ms::text, true);
    setting := set_config('search_path', '', true);
    setting := set_config('enable_seqscan', 'off', true);
    insert into gapless.stored_events (id, "offset", block_number, event_capture_time, position_id, event_no, log_index,
        status, identity, content_digest, txn, event_type, block_hash, address, event_info, event_raw)
    select e.id, e."offset", e.block_number, e.event_capture_time, e.position_id, e.event_no, e.log_index,
        e.status::gapless.event_status, e.identity, e.content_digest, e.txn, e.event_type, e.block_hash, e.address,
        e.event_info::json, e.event_raw
    from unnest(events) e;
    get diagnostics events_inserted = row_count;
    insert into gapless.outcomes ("offset", event_id, message_time, position_id, state, payload_digest, inserted)
    select o."offset", o.event_id, o.message_time, o.position_id, o.state::gapless.handling_state, o.payload_digest,
        o.inserted
    from unnest(outcomes) o;
    get diagnostics outcomes_inserted = row_count;
    if events_inserted <> cardinality(events) or outcomes_inserted <> cardinality(outcomes) then
        raise exception 'inserted % of % events and % of % outcomes; is there a trigger, rule or policy on schema gapless?',
            events_inserted, cardinality(events), outcomes_inserted, cardinality(outcomes) using errcode = 'GL002';
    end if;
    if gapless.advance(moves, tenure) <> cardinality(moves) then
        raise exception 'a position is not where it was expected' using errcode = 'GL001';
    end if;
end $$;
