-- The ledger, first version.
--
-- Base tables hold narrow rows (a position's id instead of group, topic, generation and partition);
-- the relations a user reads are views with the names of the contract. Nothing older runs yet.

-- One ledger a database: who reads into it, and by which fields events are told apart.
create table gapless.ledger (
    singleton       boolean primary key default true check (singleton),
    consumer_group  text not null,
    identity_fields text not null,
    created_at      timestamptz not null default now()
);

-- One life of one topic in one cluster. Offsets mean something within a source only.
create table gapless.sources (
    id         integer generated always as identity primary key,
    cluster_id text,
    topic      text not null,
    topic_id   text,
    generation integer not null default 1,
    first_seen timestamptz not null default now(),
    unique (topic, generation)
);

-- Every start takes a number; the highest one of a topic may write. The token tells two starts apart
-- that took the same number, before and after the database was restored.
create table gapless.writers (
    fence      bigint generated always as identity primary key,
    token      uuid not null default gen_random_uuid(),
    topic      text not null,
    instance   text not null,
    started_at timestamptz not null default now()
);

-- The start order carried out last, as it was given: given again, it is not carried out again.
create table gapless.start_orders (
    topic          text primary key,
    start_order    text not null,
    carried_out_at timestamptz not null default now()
);

-- Where to read on. Updated once a batch: room on the page keeps the update from touching an index.
create table gapless.positions (
    id            integer generated always as identity primary key,
    source_id     integer not null references gapless.sources (id),
    partition_id  integer not null check (partition_id >= 0),
    start_offset  bigint not null check (start_offset >= 0),
    next_offset   bigint not null,
    fence         bigint not null,
    anchor_offset bigint,
    anchor_digest uuid,
    leader_epoch  integer,
    updated_at    timestamptz not null default now(),
    unique (source_id, partition_id),
    check (start_offset <= next_offset)
) with (fillfactor = 20);

create type gapless.handling_state as enum ('stored', 'processed', 'rejected', 'ignored', 'removed');
create type gapless.event_status as enum ('unconfirmed', 'confirmed', 'removed');
create type gapless.gap_kind as enum ('transaction', 'compacted', 'skipped', 'lost', 'archived');

-- Numbers of events, taken by the block: the daemon numbers events before it sends them, so that
-- outcomes can name them and neither waits for the other.
create sequence gapless.event_ids increment by 64;

-- Every event once, by its identity: one narrow unique key, 16 bytes, instead of two texts. (The same key in a table of
-- its own costs the same CPU, measured by COPY of 300,000 rows, and 52 bytes more a row; a lower fillfactor brings nothing.)
create table gapless.stored_events (
    id                 bigint primary key,
    "offset"           bigint not null,
    block_number       bigint,
    event_capture_time timestamptz,
    position_id        integer not null,
    event_no           integer not null,
    log_index          integer,
    status             gapless.event_status not null,
    identity           uuid not null unique,
    content_digest     uuid not null,
    txn                text not null,
    event_type         text not null,
    block_hash         text,
    address            text,
    event_info         json,
    event_raw          bytea,
    check ((event_info is null) <> (event_raw is null))
);
-- Events of more than 2 kB are compressed; lz4 costs a fraction of pglz, where the server has it.
do $$
begin
    alter table gapless.stored_events alter column event_info set compression lz4;
exception when feature_not_supported then null;
end $$;
-- Downstream reads by position; appended to at its right edge only.
create index stored_events_position on gapless.stored_events (position_id, "offset");

-- What became of each message: exactly one row for each one read.
create table gapless.outcomes (
    "offset"       bigint not null,
    event_id       bigint,
    message_time   timestamptz,
    update_time    timestamptz not null default now(),
    position_id    integer not null,
    state          gapless.handling_state not null,
    payload_digest uuid,
    primary key (position_id, "offset")
);

-- Events whose identity is taken by one with other content: kept whole, once per content.
create table gapless.conflicting_events (
    id                 bigint generated always as identity primary key,
    event_id           bigint not null,
    "offset"           bigint not null,
    block_number       bigint,
    event_capture_time timestamptz,
    position_id        integer not null,
    event_no           integer not null,
    log_index          integer,
    status             gapless.event_status not null,
    identity           uuid not null,
    content_digest     uuid not null,
    txn                text not null,
    event_type         text not null,
    block_hash         text,
    address            text,
    event_info         json,
    event_raw          bytea,
    check ((event_info is null) <> (event_raw is null)),
    unique (identity, content_digest)
);

-- Messages that could not be understood or stored, with their bytes.
create table gapless.rejected_messages (
    position_id  integer not null,
    "offset"     bigint not null,
    message_key  bytea,
    payload      bytea,
    headers      json not null,
    message_time timestamptz,
    reason       text not null,
    detail       text not null,
    attempts     integer not null default 1,
    first_seen   timestamptz not null default now(),
    last_seen    timestamptz not null default now(),
    state        text not null default 'open' check (state in ('open', 'replayed', 'discarded')),
    primary key (position_id, "offset")
);

-- Offsets without a message, one row a batch; from_offset and to_offset bound the ranges.
create table gapless.gaps (
    id          bigint generated always as identity primary key,
    position_id integer not null,
    from_offset bigint not null,
    to_offset   bigint not null,
    kind        gapless.gap_kind not null,
    ranges      int8multirange not null check (not isempty(ranges)),
    proof       text not null,
    recorded_at timestamptz not null default now()
);
create index gaps_position on gapless.gaps (position_id, to_offset);

-- Functions for what is done once a batch, however small: their plans are kept by each server process,
-- which prepared statements would also do, were they not lost or mixed up behind a pooler.

-- What a transaction that writes a batch relies on; the same as Session::open sets for others.
create function gapless.enter(statement_ms integer, lock_ms integer, idle_ms integer) returns void language plpgsql as $$
begin
    perform set_config('synchronous_commit',
                case current_setting('synchronous_commit') when 'remote_apply' then 'remote_apply' else 'on' end, true),
            set_config('statement_timeout', statement_ms::text, true), set_config('lock_timeout', lock_ms::text, true),
            set_config('idle_in_transaction_session_timeout', idle_ms::text, true), set_config('search_path', '', true),
            set_config('enable_seqscan', 'off', true), set_config('client_min_messages', 'warning', true);
end $$;

-- What a batch brings, as it is sent where COPY is not used: one array of rows a table. (With an array a column, of
-- which there were thirty, a small batch took the server about a tenth longer.)
create type gapless.new_event as (
    id int8, "offset" int8, block_number int8, event_capture_time timestamptz, position_id int4, event_no int4,
    log_index int4, status text, identity uuid, content_digest uuid, txn text, event_type text, block_hash text,
    address text, event_info text, event_raw bytea
);
create type gapless.new_outcome as (
    "offset" int8, event_id int8, message_time timestamptz, position_id int4, state text, payload_digest uuid
);
create type gapless.position_move as (
    position_id int4, expected_offset int8, next_offset int8, anchor_offset int8, anchor_digest uuid, leader_epoch int4
);

-- Moves positions by compare-and-set on position and fence; how many moved. One by one: the plan of a join with the array
-- would be made anew each time, which takes longer than all else in it.
create function gapless.advance(moves gapless.position_move[], tenure int8, out moved int8) language plpgsql as $$
declare
    m gapless.position_move;
begin
    moved := 0;
    foreach m in array moves loop
        update gapless.positions p set next_offset = m.next_offset, updated_at = now(),
            anchor_offset = coalesce(m.anchor_offset, p.anchor_offset),
            anchor_digest = coalesce(m.anchor_digest, p.anchor_digest),
            leader_epoch = case when m.anchor_offset is null then p.leader_epoch else m.leader_epoch end
        where p.id = m.position_id and p.next_offset = m.expected_offset and p.fence = tenure;
        if found then
            moved := moved + 1;
        end if;
    end loop;
end $$;

-- A whole batch of a few messages whose events are taken for new: all of it or nothing, position included, so that it is
-- a transaction of its own. Raises unique_violation where an event is there, GL001 where a position is not where it was
-- expected, GL002 where rows were swallowed, GL003 where the role's transactions begin otherwise than a batch's do. (The
-- statement_timeout that it sets begins with the next statement: this one is ended by whom its rows are in the way of.)
create function gapless.write_few(
    events gapless.new_event[], outcomes gapless.new_outcome[], moves gapless.position_move[], tenure int8,
    statement_ms int4, lock_ms int4, idle_ms int4
) returns void language plpgsql as $$
declare
    events_inserted int8;
    outcomes_inserted int8;
begin
    if current_setting('transaction_isolation') <> 'read committed'
        or current_setting('transaction_read_only') = 'on' and not pg_is_in_recovery()
        or current_setting('statement_timeout') <> '0'
            and current_setting('statement_timeout')::interval < make_interval(secs => statement_ms / 1000.0) then
        raise exception 'transactions of this role do not begin as read committed, read write, with time enough'
            using errcode = 'GL003';
    end if;
    perform gapless.enter(statement_ms, lock_ms, idle_ms);
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

create view gapless.consumer_positions as
select l.consumer_group, s.topic, s.generation, p.partition_id, p.start_offset, p.next_offset, p.fence,
       o.start_order, p.anchor_offset, uuid_send(p.anchor_digest) as anchor_digest, p.leader_epoch, p.updated_at
from gapless.positions p
join gapless.sources s on s.id = p.source_id
cross join gapless.ledger l
left join gapless.start_orders o on o.topic = s.topic;

create view gapless.events as
select e.id, e.txn, e.event_type, e.block_number, e.block_hash, e.log_index, e.address, e.event_capture_time,
       e.status::text as status, e.event_info, e.event_raw,
       s.topic, s.generation, p.partition_id, e."offset", e.event_no
from gapless.stored_events e
join gapless.positions p on p.id = e.position_id
join gapless.sources s on s.id = p.source_id;

create view gapless.event_conflicts as
select c.id, c.txn, c.event_type, c.block_number, c.block_hash, c.log_index, c.address, c.event_capture_time,
       c.status::text as status, c.event_info, c.event_raw, c.event_id,
       s.topic, s.generation, p.partition_id, c."offset", c.event_no
from gapless.conflicting_events c
join gapless.positions p on p.id = c.position_id
join gapless.sources s on s.id = p.source_id;

create view gapless.kafka_events_received as
select l.consumer_group, s.topic, s.generation, p.partition_id, o."offset", o.state::text as handling_state,
       o.event_id, uuid_send(o.payload_digest) as payload_digest, o.message_time, o.update_time
from gapless.outcomes o
join gapless.positions p on p.id = o.position_id
join gapless.sources s on s.id = p.source_id
cross join gapless.ledger l;

create view gapless.dead_letters as
select s.topic, s.generation, p.partition_id, d."offset", d.message_key, d.payload, d.headers, d.message_time,
       d.reason, d.detail, d.attempts, d.first_seen, d.last_seen, d.state
from gapless.rejected_messages d
join gapless.positions p on p.id = d.position_id
join gapless.sources s on s.id = p.source_id;

create view gapless.offset_gaps as
select s.topic, s.generation, p.partition_id, lower(r) as from_offset, upper(r) as to_offset,
       g.kind::text as kind, g.proof
from gapless.gaps g
join gapless.positions p on p.id = g.position_id
join gapless.sources s on s.id = p.source_id
cross join lateral unnest(g.ranges) as r;

-- Rejected messages, and offsets that are neither told nor explained (always none).
create view gapless.unhandled_offsets as
select s.topic, s.generation, p.partition_id, o."offset", 'rejected' as why
from gapless.outcomes o
join gapless.positions p on p.id = o.position_id
join gapless.sources s on s.id = p.source_id
where o.state = 'rejected'
union all
select s.topic, s.generation, p.partition_id, missing."offset", 'missing' as why
from gapless.positions p
join gapless.sources s on s.id = p.source_id
cross join lateral (
    select generate_series(reached.max_hi, reached.lo - 1) as "offset"
    from (
        select lo, max(hi) over (order by lo rows between unbounded preceding and 1 preceding) as max_hi
        from (
            select p.start_offset as lo, p.start_offset as hi
            union all
            select o."offset", o."offset" + 1 from gapless.outcomes o
            where o.position_id = p.id and o."offset" >= p.start_offset and o."offset" < p.next_offset
            union all
            select greatest(lower(r), p.start_offset), least(upper(r), p.next_offset)
            from gapless.gaps g cross join lateral unnest(g.ranges) as r
            where g.position_id = p.id and lower(r) < p.next_offset and upper(r) > p.start_offset
            union all
            select p.next_offset, p.next_offset
        ) as parts
    ) as reached
    where reached.max_hi < reached.lo
) as missing;
