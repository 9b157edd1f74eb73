-- A batch of a few messages takes the server a tenth less: it sets only what the one statement relies on, and each
-- setting by an assignment, which needs no executor. The function with seven arguments stays for a daemon of the
-- version before, which may still run.

-- A whole batch of a few messages whose events are taken for new: all of it or nothing, position included, so that it is
-- a transaction of its own. Raises unique_violation where an event is there, GL001 where a position is not where it was
-- expected, GL002 where rows were swallowed, GL003 where the role's transactions begin otherwise than a batch's do.
-- (Limits of statements and of idle transactions would begin with the next statement, of which there is none: this one
-- is ended by the lock_timeout, or by whom its rows are in the way of.)
create function gapless.write_few(
    events gapless.new_event[], outcomes gapless.new_outcome[], moves gapless.position_move[], tenure int8,
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
    insert into gapless.outcomes ("offset", event_id, message_time, position_id, state, payload_digest)
    select o."offset", o.event_id, o.message_time, o.position_id, o.state::gapless.handling_state, o.payload_digest
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
