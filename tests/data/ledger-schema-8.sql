--
-- PostgreSQL database dump
--

\restrict fyjJZx4Aw8OrhfskbVGKyByZuXgr6KEBNj7ROZa0ptmIZi2MELaY2DtlW3cISdO

-- Dumped from database version 15.18 (Debian 15.18-0+deb12u1)
-- Dumped by pg_dump version 15.18 (Debian 15.18-0+deb12u1)

SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;

--
-- Name: gapless; Type: SCHEMA; Schema: -; Owner: -
--

CREATE SCHEMA gapless;


--
-- Name: event_status; Type: TYPE; Schema: gapless; Owner: -
--

CREATE TYPE gapless.event_status AS ENUM (
    'unconfirmed',
    'confirmed',
    'removed'
);


--
-- Name: gap_kind; Type: TYPE; Schema: gapless; Owner: -
--

CREATE TYPE gapless.gap_kind AS ENUM (
    'transaction',
    'compacted',
    'skipped',
    'lost',
    'archived'
);


--
-- Name: handling_state; Type: TYPE; Schema: gapless; Owner: -
--

CREATE TYPE gapless.handling_state AS ENUM (
    'stored',
    'processed',
    'rejected',
    'ignored',
    'removed'
);


--
-- Name: new_event; Type: TYPE; Schema: gapless; Owner: -
--

CREATE TYPE gapless.new_event AS (
	id bigint,
	"offset" bigint,
	block_number bigint,
	event_capture_time timestamp with time zone,
	position_id integer,
	event_no integer,
	log_index integer,
	status text,
	identity uuid,
	content_digest uuid,
	txn text,
	event_type text,
	block_hash text,
	address text,
	event_info text,
	event_raw bytea
);


--
-- Name: new_outcome; Type: TYPE; Schema: gapless; Owner: -
--

CREATE TYPE gapless.new_outcome AS (
	"offset" bigint,
	event_id bigint,
	message_time timestamp with time zone,
	position_id integer,
	state text,
	payload_digest uuid
);


--
-- Name: position_move; Type: TYPE; Schema: gapless; Owner: -
--

CREATE TYPE gapless.position_move AS (
	position_id integer,
	expected_offset bigint,
	next_offset bigint,
	anchor_offset bigint,
	anchor_digest uuid,
	leader_epoch integer
);


--
-- Name: advance(gapless.position_move[], bigint); Type: FUNCTION; Schema: gapless; Owner: -
--

CREATE FUNCTION gapless.advance(moves gapless.position_move[], tenure bigint, OUT moved bigint) RETURNS bigint
    LANGUAGE plpgsql
    AS $$
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


--
-- Name: enter(integer, integer, integer); Type: FUNCTION; Schema: gapless; Owner: -
--

CREATE FUNCTION gapless.enter(statement_ms integer, lock_ms integer, idle_ms integer) RETURNS void
    LANGUAGE plpgsql
    AS $$
begin
    perform set_config('synchronous_commit',
                case current_setting('synchronous_commit') when 'remote_apply' then 'remote_apply' else 'on' end, true),
            set_config('statement_timeout', statement_ms::text, true), set_config('lock_timeout', lock_ms::text, true),
            set_config('idle_in_transaction_session_timeout', idle_ms::text, true), set_config('search_path', '', true),
            set_config('enable_seqscan', 'off', true), set_config('client_min_messages', 'warning', true);
end $$;


--
-- Name: note_late_changes(integer[], bigint[], integer[]); Type: FUNCTION; Schema: gapless; Owner: -
--

CREATE FUNCTION gapless.note_late_changes(position_ids integer[], offsets bigint[], moving integer[]) RETURNS void
    LANGUAGE plpgsql
    AS $$
begin
    perform p.id from gapless.positions p where p.id = any(position_ids || moving) order by p.id for no key update;
    with changed as (
        select distinct u.position_id, u."offset"
        from unnest(position_ids, offsets) as u(position_id, "offset")
        join gapless.positions p on p.id = u.position_id
        where u."offset" < greatest(p.next_offset, p.announced_to)
    ), numbered as (
        select c.position_id, c."offset", row_number() over (partition by c.position_id order by c."offset") as n
        from changed c
    ), counted as (
        update gapless.positions p set late_revision = p.late_revision + c.changes
        from (select position_id, count(*) as changes from changed group by position_id) as c
        where p.id = c.position_id
        returning p.id, p.late_revision - c.changes as before
    )
    insert into gapless.late_offsets (position_id, revision, "offset")
    select n.position_id, c.before + n.n, n."offset" from numbered n join counted c on c.id = n.position_id;
end $$;


--
-- Name: record_late_changes(integer[], bigint[], integer[]); Type: FUNCTION; Schema: gapless; Owner: -
--

CREATE FUNCTION gapless.record_late_changes(position_ids integer[], offsets bigint[], moving integer[], OUT late bigint, OUT recorded bigint) RETURNS record
    LANGUAGE plpgsql
    AS $$
declare
    changed record;
    last_revision bigint;
    written bigint;
begin
    late := 0;
    recorded := 0;
    perform p.id from gapless.positions p where p.id = any(position_ids || moving) order by p.id for no key update;
    for changed in
        select p.id, array_agg(distinct u."offset" order by u."offset") as places
        from unnest(position_ids, offsets) as u(position_id, "offset")
        join gapless.positions p on p.id = u.position_id
        where u."offset" < greatest(p.next_offset, p.announced_to)
        group by p.id order by p.id
    loop
        late := late + cardinality(changed.places);
        select p.late_revision into last_revision from gapless.positions p where p.id = changed.id;
        update gapless.positions p set late_revision = last_revision + cardinality(changed.places) where p.id = changed.id;
        if found then
            insert into gapless.late_offsets (position_id, revision, "offset")
            select changed.id, last_revision + n.number, n."offset"
            from unnest(changed.places) with ordinality as n("offset", number);
            select count(*) into written from gapless.late_offsets l
            where l.position_id = changed.id and l.revision > last_revision;
            recorded := recorded + written;
        end if;
    end loop;
end $$;


--
-- Name: refuse_change(); Type: FUNCTION; Schema: gapless; Owner: -
--

CREATE FUNCTION gapless.refuse_change() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
begin
    raise exception 'gapless.% is append-only: % is refused', tg_table_name, lower(tg_op)
        using errcode = 'restrict_violation';
end $$;


--
-- Name: write_few(gapless.new_event[], gapless.new_outcome[], gapless.position_move[], bigint, integer, integer); Type: FUNCTION; Schema: gapless; Owner: -
--

CREATE FUNCTION gapless.write_few(events gapless.new_event[], outcomes gapless.new_outcome[], moves gapless.position_move[], tenure bigint, statement_ms integer, lock_ms integer) RETURNS void
    LANGUAGE plpgsql
    AS $$
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


--
-- Name: write_few(gapless.new_event[], gapless.new_outcome[], gapless.position_move[], bigint, integer, integer, integer); Type: FUNCTION; Schema: gapless; Owner: -
--

CREATE FUNCTION gapless.write_few(events gapless.new_event[], outcomes gapless.new_outcome[], moves gapless.position_move[], tenure bigint, statement_ms integer, lock_ms integer, idle_ms integer) RETURNS void
    LANGUAGE plpgsql
    AS $$
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


SET default_tablespace = '';

SET default_table_access_method = heap;

--
-- Name: audits; Type: TABLE; Schema: gapless; Owner: -
--

CREATE TABLE gapless.audits (
    position_id integer NOT NULL,
    counted_from bigint NOT NULL,
    counted_to bigint NOT NULL,
    missing bigint NOT NULL,
    counted_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT audits_check CHECK ((counted_from <= counted_to))
);


--
-- Name: conflicting_events; Type: TABLE; Schema: gapless; Owner: -
--

CREATE TABLE gapless.conflicting_events (
    id bigint NOT NULL,
    event_id bigint NOT NULL,
    "offset" bigint NOT NULL,
    block_number bigint,
    event_capture_time timestamp with time zone,
    position_id integer NOT NULL,
    event_no integer NOT NULL,
    log_index integer,
    status gapless.event_status NOT NULL,
    identity uuid NOT NULL,
    content_digest uuid NOT NULL,
    txn text NOT NULL,
    event_type text NOT NULL,
    block_hash text,
    address text,
    event_info json,
    event_raw bytea,
    CONSTRAINT conflicting_events_check CHECK (((event_info IS NULL) <> (event_raw IS NULL)))
);


--
-- Name: conflicting_events_id_seq; Type: SEQUENCE; Schema: gapless; Owner: -
--

ALTER TABLE gapless.conflicting_events ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME gapless.conflicting_events_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);


--
-- Name: ledger; Type: TABLE; Schema: gapless; Owner: -
--

CREATE TABLE gapless.ledger (
    singleton boolean DEFAULT true NOT NULL,
    consumer_group text NOT NULL,
    identity_fields text NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT ledger_singleton_check CHECK (singleton)
);


--
-- Name: positions; Type: TABLE; Schema: gapless; Owner: -
--

CREATE TABLE gapless.positions (
    id integer NOT NULL,
    source_id integer NOT NULL,
    partition_id integer NOT NULL,
    start_offset bigint NOT NULL,
    next_offset bigint NOT NULL,
    fence bigint NOT NULL,
    anchor_offset bigint,
    anchor_digest uuid,
    leader_epoch integer,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    announced_to bigint DEFAULT 0 NOT NULL,
    late_revision bigint DEFAULT 0 NOT NULL,
    CONSTRAINT positions_check CHECK ((start_offset <= next_offset)),
    CONSTRAINT positions_partition_id_check CHECK ((partition_id >= 0)),
    CONSTRAINT positions_start_offset_check CHECK ((start_offset >= 0))
)
WITH (fillfactor='20');


--
-- Name: sources; Type: TABLE; Schema: gapless; Owner: -
--

CREATE TABLE gapless.sources (
    id integer NOT NULL,
    cluster_id text,
    topic text NOT NULL,
    topic_id text,
    generation integer DEFAULT 1 NOT NULL,
    first_seen timestamp with time zone DEFAULT now() NOT NULL
);


--
-- Name: start_orders; Type: TABLE; Schema: gapless; Owner: -
--

CREATE TABLE gapless.start_orders (
    topic text NOT NULL,
    start_order text NOT NULL,
    carried_out_at timestamp with time zone DEFAULT now() NOT NULL
);


--
-- Name: consumer_positions; Type: VIEW; Schema: gapless; Owner: -
--

CREATE VIEW gapless.consumer_positions AS
 SELECT l.consumer_group,
    s.topic,
    s.generation,
    p.partition_id,
    p.start_offset,
    p.next_offset,
    p.fence,
    o.start_order,
    p.anchor_offset,
    uuid_send(p.anchor_digest) AS anchor_digest,
    p.leader_epoch,
    p.updated_at
   FROM (((gapless.positions p
     JOIN gapless.sources s ON ((s.id = p.source_id)))
     CROSS JOIN gapless.ledger l)
     LEFT JOIN gapless.start_orders o ON ((o.topic = s.topic)));


--
-- Name: rejected_messages; Type: TABLE; Schema: gapless; Owner: -
--

CREATE TABLE gapless.rejected_messages (
    position_id integer NOT NULL,
    "offset" bigint NOT NULL,
    message_key bytea,
    payload bytea,
    headers json NOT NULL,
    message_time timestamp with time zone,
    reason text NOT NULL,
    detail text NOT NULL,
    attempts integer DEFAULT 1 NOT NULL,
    first_seen timestamp with time zone DEFAULT now() NOT NULL,
    last_seen timestamp with time zone DEFAULT now() NOT NULL,
    state text DEFAULT 'open'::text NOT NULL,
    CONSTRAINT rejected_messages_state_check CHECK ((state = ANY (ARRAY['open'::text, 'replayed'::text, 'discarded'::text])))
);


--
-- Name: dead_letters; Type: VIEW; Schema: gapless; Owner: -
--

CREATE VIEW gapless.dead_letters AS
 SELECT s.topic,
    s.generation,
    p.partition_id,
    d."offset",
    d.message_key,
    d.payload,
    d.headers,
    d.message_time,
    d.reason,
    d.detail,
    d.attempts,
    d.first_seen,
    d.last_seen,
    d.state
   FROM ((gapless.rejected_messages d
     JOIN gapless.positions p ON ((p.id = d.position_id)))
     JOIN gapless.sources s ON ((s.id = p.source_id)));


--
-- Name: decisions; Type: TABLE; Schema: gapless; Owner: -
--

CREATE TABLE gapless.decisions (
    id bigint NOT NULL,
    decided_at timestamp with time zone DEFAULT now() NOT NULL,
    verb text NOT NULL,
    subject text NOT NULL,
    reason text,
    db_role text,
    os_user text,
    arguments jsonb,
    rows_changed bigint,
    program_version text
);


--
-- Name: decisions_id_seq; Type: SEQUENCE; Schema: gapless; Owner: -
--

ALTER TABLE gapless.decisions ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME gapless.decisions_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);


--
-- Name: event_conflicts; Type: VIEW; Schema: gapless; Owner: -
--

CREATE VIEW gapless.event_conflicts AS
 SELECT c.id,
    c.txn,
    c.event_type,
    c.block_number,
    c.block_hash,
    c.log_index,
    c.address,
    c.event_capture_time,
    (c.status)::text AS status,
    c.event_info,
    c.event_raw,
    c.event_id,
    s.topic,
    s.generation,
    p.partition_id,
    c."offset",
    c.event_no
   FROM ((gapless.conflicting_events c
     JOIN gapless.positions p ON ((p.id = c.position_id)))
     JOIN gapless.sources s ON ((s.id = p.source_id)));


--
-- Name: event_ids; Type: SEQUENCE; Schema: gapless; Owner: -
--

CREATE SEQUENCE gapless.event_ids
    START WITH 1
    INCREMENT BY 64
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;


--
-- Name: stored_events; Type: TABLE; Schema: gapless; Owner: -
--

CREATE TABLE gapless.stored_events (
    id bigint NOT NULL,
    "offset" bigint NOT NULL,
    block_number bigint,
    event_capture_time timestamp with time zone,
    position_id integer NOT NULL,
    event_no integer NOT NULL,
    log_index integer,
    status gapless.event_status NOT NULL,
    identity uuid NOT NULL,
    content_digest uuid NOT NULL,
    txn text NOT NULL,
    event_type text NOT NULL,
    block_hash text,
    address text,
    event_info json,
    event_raw bytea,
    CONSTRAINT stored_events_check CHECK (((event_info IS NULL) <> (event_raw IS NULL)))
);
ALTER TABLE ONLY gapless.stored_events ALTER COLUMN event_info SET COMPRESSION lz4;


--
-- Name: events; Type: VIEW; Schema: gapless; Owner: -
--

CREATE VIEW gapless.events AS
 SELECT e.id,
    e.txn,
    e.event_type,
    e.block_number,
    e.block_hash,
    e.log_index,
    e.address,
    e.event_capture_time,
    (e.status)::text AS status,
    e.event_info,
    e.event_raw,
    s.topic,
    s.generation,
    p.partition_id,
    e."offset",
    e.event_no
   FROM ((gapless.stored_events e
     JOIN gapless.positions p ON ((p.id = e.position_id)))
     JOIN gapless.sources s ON ((s.id = p.source_id)));


--
-- Name: format_history; Type: TABLE; Schema: gapless; Owner: -
--

CREATE TABLE gapless.format_history (
    id bigint NOT NULL,
    position_id integer NOT NULL,
    from_offset bigint NOT NULL,
    to_offset bigint,
    format text NOT NULL,
    mapping_digest uuid,
    identity_fields text NOT NULL,
    program_version text NOT NULL,
    recorded_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT format_history_check CHECK ((to_offset > from_offset)),
    CONSTRAINT format_history_from_offset_check CHECK ((from_offset >= 0))
);


--
-- Name: format_history_id_seq; Type: SEQUENCE; Schema: gapless; Owner: -
--

ALTER TABLE gapless.format_history ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME gapless.format_history_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);


--
-- Name: gaps; Type: TABLE; Schema: gapless; Owner: -
--

CREATE TABLE gapless.gaps (
    id bigint NOT NULL,
    position_id integer NOT NULL,
    from_offset bigint NOT NULL,
    to_offset bigint NOT NULL,
    kind gapless.gap_kind NOT NULL,
    ranges int8multirange NOT NULL,
    proof text NOT NULL,
    recorded_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT gaps_ranges_check CHECK ((NOT isempty(ranges)))
);


--
-- Name: gaps_id_seq; Type: SEQUENCE; Schema: gapless; Owner: -
--

ALTER TABLE gapless.gaps ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME gapless.gaps_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);


--
-- Name: outcomes; Type: TABLE; Schema: gapless; Owner: -
--

CREATE TABLE gapless.outcomes (
    "offset" bigint NOT NULL,
    event_id bigint,
    message_time timestamp with time zone,
    update_time timestamp with time zone DEFAULT now() NOT NULL,
    position_id integer NOT NULL,
    state gapless.handling_state NOT NULL,
    payload_digest uuid
);


--
-- Name: kafka_events_received; Type: VIEW; Schema: gapless; Owner: -
--

CREATE VIEW gapless.kafka_events_received AS
 SELECT l.consumer_group,
    s.topic,
    s.generation,
    p.partition_id,
    o."offset",
    (o.state)::text AS handling_state,
    o.event_id,
    uuid_send(o.payload_digest) AS payload_digest,
    o.message_time,
    o.update_time
   FROM (((gapless.outcomes o
     JOIN gapless.positions p ON ((p.id = o.position_id)))
     JOIN gapless.sources s ON ((s.id = p.source_id)))
     CROSS JOIN gapless.ledger l);


--
-- Name: late_offsets; Type: TABLE; Schema: gapless; Owner: -
--

CREATE TABLE gapless.late_offsets (
    position_id integer NOT NULL,
    revision bigint NOT NULL,
    "offset" bigint NOT NULL,
    changed_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);


--
-- Name: late_changes; Type: VIEW; Schema: gapless; Owner: -
--

CREATE VIEW gapless.late_changes AS
 SELECT s.topic,
    s.generation,
    p.partition_id,
    c."offset",
    c.revision,
    c.changed_at
   FROM ((gapless.late_offsets c
     JOIN gapless.positions p ON ((p.id = c.position_id)))
     JOIN gapless.sources s ON ((s.id = p.source_id)));


--
-- Name: log_ends; Type: TABLE; Schema: gapless; Owner: -
--

CREATE TABLE gapless.log_ends (
    position_id integer NOT NULL,
    log_end bigint NOT NULL,
    seen_at timestamp with time zone DEFAULT now() NOT NULL
);


--
-- Name: offset_gaps; Type: VIEW; Schema: gapless; Owner: -
--

CREATE VIEW gapless.offset_gaps AS
 SELECT s.topic,
    s.generation,
    p.partition_id,
    lower(r.r) AS from_offset,
    upper(r.r) AS to_offset,
    (g.kind)::text AS kind,
    g.proof
   FROM (((gapless.gaps g
     JOIN gapless.positions p ON ((p.id = g.position_id)))
     JOIN gapless.sources s ON ((s.id = p.source_id)))
     CROSS JOIN LATERAL unnest(g.ranges) r(r));


--
-- Name: recorded_states; Type: TABLE; Schema: gapless; Owner: -
--

CREATE TABLE gapless.recorded_states (
    position_id integer NOT NULL,
    fence bigint NOT NULL,
    state text NOT NULL,
    reason text NOT NULL,
    detail text NOT NULL,
    from_offset bigint,
    to_offset bigint,
    remedy text NOT NULL,
    since timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT recorded_states_state_check CHECK ((state = ANY (ARRAY['suspended'::text, 'halted'::text])))
);


--
-- Name: writers; Type: TABLE; Schema: gapless; Owner: -
--

CREATE TABLE gapless.writers (
    fence bigint NOT NULL,
    token uuid DEFAULT gen_random_uuid() NOT NULL,
    topic text NOT NULL,
    instance text NOT NULL,
    started_at timestamp with time zone DEFAULT now() NOT NULL
);


--
-- Name: partition_states; Type: VIEW; Schema: gapless; Owner: -
--

CREATE VIEW gapless.partition_states AS
 SELECT s.topic,
    s.generation,
    p.partition_id,
    r.state,
    r.reason,
    r.detail,
    r.from_offset,
    r.to_offset,
    r.remedy,
    r.since,
    r.updated_at,
    r.fence,
    w.instance
   FROM (((gapless.recorded_states r
     JOIN gapless.positions p ON ((p.id = r.position_id)))
     JOIN gapless.sources s ON ((s.id = p.source_id)))
     LEFT JOIN gapless.writers w ON ((w.fence = r.fence)));


--
-- Name: positions_id_seq; Type: SEQUENCE; Schema: gapless; Owner: -
--

ALTER TABLE gapless.positions ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME gapless.positions_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);


--
-- Name: refinery_schema_history; Type: TABLE; Schema: gapless; Owner: -
--

CREATE TABLE gapless.refinery_schema_history (
    version integer NOT NULL,
    name character varying(255),
    applied_on character varying(255),
    checksum character varying(255)
);


--
-- Name: sources_id_seq; Type: SEQUENCE; Schema: gapless; Owner: -
--

ALTER TABLE gapless.sources ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME gapless.sources_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);


--
-- Name: unhandled_offsets; Type: VIEW; Schema: gapless; Owner: -
--

CREATE VIEW gapless.unhandled_offsets AS
 SELECT s.topic,
    s.generation,
    p.partition_id,
    o."offset",
    'rejected'::text AS why
   FROM ((gapless.outcomes o
     JOIN gapless.positions p ON ((p.id = o.position_id)))
     JOIN gapless.sources s ON ((s.id = p.source_id)))
  WHERE (o.state = 'rejected'::gapless.handling_state)
UNION ALL
 SELECT s.topic,
    s.generation,
    p.partition_id,
    missing."offset",
    'missing'::text AS why
   FROM ((gapless.positions p
     JOIN gapless.sources s ON ((s.id = p.source_id)))
     CROSS JOIN LATERAL ( SELECT generate_series(reached.max_hi, (reached.lo - 1)) AS "offset"
           FROM ( SELECT parts.lo,
                    max(parts.hi) OVER (ORDER BY parts.lo ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS max_hi
                   FROM ( SELECT p.start_offset AS lo,
                            p.start_offset AS hi
                        UNION ALL
                         SELECT o."offset",
                            (o."offset" + 1)
                           FROM gapless.outcomes o
                          WHERE ((o.position_id = p.id) AND (o."offset" >= p.start_offset) AND (o."offset" < p.next_offset))
                        UNION ALL
                         SELECT GREATEST(lower(r.r), p.start_offset) AS "greatest",
                            LEAST(upper(r.r), p.next_offset) AS "least"
                           FROM (gapless.gaps g
                             CROSS JOIN LATERAL unnest(g.ranges) r(r))
                          WHERE ((g.position_id = p.id) AND (lower(r.r) < p.next_offset) AND (upper(r.r) > p.start_offset))
                        UNION ALL
                         SELECT p.next_offset,
                            p.next_offset) parts) reached
          WHERE (reached.max_hi < reached.lo)) missing);


--
-- Name: writers_fence_seq; Type: SEQUENCE; Schema: gapless; Owner: -
--

ALTER TABLE gapless.writers ALTER COLUMN fence ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME gapless.writers_fence_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);


--
-- Data for Name: audits; Type: TABLE DATA; Schema: gapless; Owner: -
--

COPY gapless.audits (position_id, counted_from, counted_to, missing, counted_at) FROM stdin;
\.


--
-- Data for Name: conflicting_events; Type: TABLE DATA; Schema: gapless; Owner: -
--

COPY gapless.conflicting_events (id, event_id, "offset", block_number, event_capture_time, position_id, event_no, log_index, status, identity, content_digest, txn, event_type, block_hash, address, event_info, event_raw) FROM stdin;
\.


--
-- Data for Name: decisions; Type: TABLE DATA; Schema: gapless; Owner: -
--

COPY gapless.decisions (id, decided_at, verb, subject, reason, db_role, os_user, arguments, rows_changed, program_version) FROM stdin;
\.


--
-- Data for Name: format_history; Type: TABLE DATA; Schema: gapless; Owner: -
--

COPY gapless.format_history (id, position_id, from_offset, to_offset, format, mapping_digest, identity_fields, program_version, recorded_at) FROM stdin;
1	1	0	\N	web3	\N	txn,event_type	0.1.0	2026-11-28 16:56:47.557089+00
\.


--
-- Data for Name: gaps; Type: TABLE DATA; Schema: gapless; Owner: -
--

COPY gapless.gaps (id, position_id, from_offset, to_offset, kind, ranges, proof, recorded_at) FROM stdin;
1	1	32	36	transaction	{[32,36)}	read again by a second client: 2 records of aborted transactions, 2 offsets without any record (cleanup.policy delete)	2026-11-28 16:56:47.724153+00
2	1	40	41	transaction	{[40,41)}	read again by a second client: 0 records of aborted transactions, 1 offsets without any record (cleanup.policy delete)	2026-11-28 16:56:47.963431+00
\.


--
-- Data for Name: late_offsets; Type: TABLE DATA; Schema: gapless; Owner: -
--

COPY gapless.late_offsets (position_id, revision, "offset", changed_at) FROM stdin;
\.


--
-- Data for Name: ledger; Type: TABLE DATA; Schema: gapless; Owner: -
--

COPY gapless.ledger (singleton, consumer_group, identity_fields, created_at) FROM stdin;
t	earlier	txn,event_type	2026-11-28 16:56:47.557089+00
\.


--
-- Data for Name: log_ends; Type: TABLE DATA; Schema: gapless; Owner: -
--

COPY gapless.log_ends (position_id, log_end, seen_at) FROM stdin;
1	41	2026-11-28 16:56:47.964644+00
\.


--
-- Data for Name: outcomes; Type: TABLE DATA; Schema: gapless; Owner: -
--

COPY gapless.outcomes ("offset", event_id, message_time, update_time, position_id, state, payload_digest) FROM stdin;
0	1	2026-09-21 14:13:20+00	2026-11-28 16:56:47.724153+00	1	stored	2cf51378-48a6-2092-3544-37b544f94e48
1	2	2026-09-21 14:13:20.001+00	2026-11-28 16:56:47.724153+00	1	stored	c097b4c1-26cb-2bc9-3794-107ebeb6c449
2	3	2026-09-21 14:13:20.002+00	2026-11-28 16:56:47.724153+00	1	stored	604580e5-305c-30ca-cbfc-f2d8f530ad90
3	4	2026-09-21 14:13:20.003+00	2026-11-28 16:56:47.724153+00	1	stored	6534fa5c-ae0e-e7d4-3ea4-57a6a3af4242
4	5	2026-09-21 14:13:20.004+00	2026-11-28 16:56:47.724153+00	1	stored	886d6c19-a80b-648a-c98e-a838eac8172e
5	6	2026-09-21 14:13:20.005+00	2026-11-28 16:56:47.724153+00	1	stored	2df403ca-efd2-c453-28f2-97a91a132c38
6	7	2026-09-21 14:13:20.006+00	2026-11-28 16:56:47.724153+00	1	stored	07a448f5-3daf-c87d-bc2f-a8c12fb502d6
7	8	2026-09-21 14:13:20.007+00	2026-11-28 16:56:47.724153+00	1	stored	dfb4c9c2-9fbc-737c-2f30-76f1c3528da3
8	9	2026-09-21 14:13:20.008+00	2026-11-28 16:56:47.724153+00	1	stored	eb9acaed-ab65-7b13-d4f3-596451e3924c
9	10	2026-09-21 14:13:20.009+00	2026-11-28 16:56:47.724153+00	1	stored	68f5eef3-b9f1-e4ae-04d2-cfcd1b1a6ca7
10	11	2026-09-21 14:13:20.01+00	2026-11-28 16:56:47.724153+00	1	stored	0e723bf9-54f2-1799-9d77-ce8daeeb08fb
11	12	2026-09-21 14:13:20.011+00	2026-11-28 16:56:47.724153+00	1	stored	085b584e-29c6-befc-b750-75ef4765a560
12	13	2026-09-21 14:13:20.012+00	2026-11-28 16:56:47.724153+00	1	stored	fac4fd4b-326a-65ca-0f0b-6599a63846ec
13	14	2026-09-21 14:13:20.013+00	2026-11-28 16:56:47.724153+00	1	stored	c02a47d5-38e5-8a29-ff88-3b2aa599d1bc
14	15	2026-09-21 14:13:20.014+00	2026-11-28 16:56:47.724153+00	1	stored	816e560c-7427-87bd-34f1-106398ccfb35
15	16	2026-09-21 14:13:20.015+00	2026-11-28 16:56:47.724153+00	1	stored	e06a5f15-6825-40aa-82cd-095120760339
16	17	2026-09-21 14:13:20.016+00	2026-11-28 16:56:47.724153+00	1	stored	2710cfaf-ab99-3dfe-f4fe-5eccfb8ac4bd
17	18	2026-09-21 14:13:20.017+00	2026-11-28 16:56:47.724153+00	1	stored	6d5d5139-22b8-2e31-cca9-775c33760b0d
18	19	2026-09-21 14:13:20.018+00	2026-11-28 16:56:47.724153+00	1	stored	0b43d52d-1b9e-95c0-2d1a-3cc184436fd4
19	20	2026-09-21 14:13:20.019+00	2026-11-28 16:56:47.724153+00	1	stored	823f93dd-16e4-dd78-ae3d-84971d3040bf
20	9	2026-09-21 14:13:20.008+00	2026-11-28 16:56:47.724153+00	1	processed	eb9acaed-ab65-7b13-d4f3-596451e3924c
21	8	2026-09-21 14:13:20.007+00	2026-11-28 16:56:47.724153+00	1	processed	dfb4c9c2-9fbc-737c-2f30-76f1c3528da3
22	7	2026-09-21 14:13:20.006+00	2026-11-28 16:56:47.724153+00	1	processed	07a448f5-3daf-c87d-bc2f-a8c12fb502d6
23	6	2026-09-21 14:13:20.005+00	2026-11-28 16:56:47.724153+00	1	processed	2df403ca-efd2-c453-28f2-97a91a132c38
24	\N	2026-09-21 14:13:20+00	2026-11-28 16:56:47.724153+00	1	rejected	e9b211a2-7b5e-75d7-ddc4-333ef7ffdc42
25	\N	2026-09-21 14:13:20+00	2026-11-28 16:56:47.724153+00	1	ignored	\N
26	4	2026-09-21 14:13:20+00	2026-11-28 16:56:47.724153+00	1	removed	9a441b11-dc64-c98e-670f-91d61a5876a1
27	5	2026-09-21 14:13:20+00	2026-11-28 16:56:47.724153+00	1	processed	29adad64-982c-80a2-c6d9-38a1380dec97
28	21	2026-09-21 14:13:20.02+00	2026-11-28 16:56:47.724153+00	1	stored	69609f0d-ecc9-f016-3898-a22709a20f98
29	22	2026-09-21 14:13:20.021+00	2026-11-28 16:56:47.724153+00	1	stored	41dc5401-70f0-5a4d-0f63-5369feaff972
30	23	2026-09-21 14:13:20.022+00	2026-11-28 16:56:47.724153+00	1	stored	36c51f27-8566-46d0-a358-8a38664be8dd
31	24	2026-09-21 14:13:20.023+00	2026-11-28 16:56:47.724153+00	1	stored	72f9de32-56a7-85d8-76b9-9dae9bab8be4
36	25	2026-09-21 14:13:20.026+00	2026-11-28 16:56:47.724153+00	1	stored	05ef18af-694b-664e-3c46-3ae794c4c174
37	26	2026-09-21 14:13:20.027+00	2026-11-28 16:56:47.724153+00	1	stored	51a1bdb1-ed91-1c74-926f-eacd333a9b65
38	27	2026-09-21 14:13:20.028+00	2026-11-28 16:56:47.724153+00	1	stored	e0cf0984-77d1-0298-3e1c-a5809e5caf9d
39	28	2026-09-21 14:13:20.029+00	2026-11-28 16:56:47.724153+00	1	stored	186cb7c4-add0-3d61-52b7-e2cc3f9387b9
\.


--
-- Data for Name: positions; Type: TABLE DATA; Schema: gapless; Owner: -
--

COPY gapless.positions (id, source_id, partition_id, start_offset, next_offset, fence, anchor_offset, anchor_digest, leader_epoch, updated_at, announced_to, late_revision) FROM stdin;
1	1	0	0	41	1	39	32dbd5d1-6217-e4df-6f06-5f2d5b2692fe	0	2026-11-28 16:56:47.963431+00	0	0
\.


--
-- Data for Name: recorded_states; Type: TABLE DATA; Schema: gapless; Owner: -
--

COPY gapless.recorded_states (position_id, fence, state, reason, detail, from_offset, to_offset, remedy, since, updated_at) FROM stdin;
\.


--
-- Data for Name: refinery_schema_history; Type: TABLE DATA; Schema: gapless; Owner: -
--

COPY gapless.refinery_schema_history (version, name, applied_on, checksum) FROM stdin;
1	ledger	2026-11-28T16:56:47.47216827Z	4739981717083898356
2	decisions	2026-11-28T16:56:47.472175772Z	16387131749959052562
3	small_batches	2026-11-28T16:56:47.472176222Z	16136528961123729006
5	contents	2026-11-28T16:56:47.472181851Z	13100330732805663724
6	late_changes	2026-11-28T16:56:47.472182221Z	12622894622779061844
7	partition_states	2026-11-28T16:56:47.472186127Z	12963133180242114389
8	late_changes_counted	2026-11-28T16:56:47.472188641Z	15190646931707035445
\.


--
-- Data for Name: rejected_messages; Type: TABLE DATA; Schema: gapless; Owner: -
--

COPY gapless.rejected_messages (position_id, "offset", message_key, payload, headers, message_time, reason, detail, attempts, first_seen, last_seen, state) FROM stdin;
1	24	\N	\\x6e6f206576656e74	[]	2026-09-21 14:13:20+00	not_json	expected ident at line 1 column 2	1	2026-11-28 16:56:47.724153+00	2026-11-28 16:56:47.724153+00	open
\.


--
-- Data for Name: sources; Type: TABLE DATA; Schema: gapless; Owner: -
--

COPY gapless.sources (id, cluster_id, topic, topic_id, generation, first_seen) FROM stdin;
1	VOGqa4UJpoAYvUZEGkLEIQ	topic_17765_85004674_0	oJReE68mQ4aYuJEGHAks6g	1	2026-11-28 16:56:47.557089+00
\.


--
-- Data for Name: start_orders; Type: TABLE DATA; Schema: gapless; Owner: -
--

COPY gapless.start_orders (topic, start_order, carried_out_at) FROM stdin;
\.


--
-- Data for Name: stored_events; Type: TABLE DATA; Schema: gapless; Owner: -
--

COPY gapless.stored_events (id, "offset", block_number, event_capture_time, position_id, event_no, log_index, status, identity, content_digest, txn, event_type, block_hash, address, event_info, event_raw) FROM stdin;
1	0	4171	2018-11-07 12:34:56.78+00	1	0	0	confirmed	5f21e05a-53f3-0a27-5008-c29cd857ea83	827339ab-710d-8187-b906-75b2e7fc7dd3	0xd56b1fbb9ceba9e80000000000000000ed183490b02bd5faeb1b24b7a974960b	RedeemedLotttery	0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8	0xeee947ef3092ba17cf35fc87ffda59e8fc285485	{"address":"0xeee947ef3092ba17cf35fc87ffda59e8fc285485","blockNumber":4171,"transactionHash":"0xd56b1fbb9ceba9e80000000000000000ed183490b02bd5faeb1b24b7a974960b","transactionIndex":0,"blockHash":"0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8","logIndex":0,"removed":false,"id":"log_0xeee947ef3092ba17cf35fc87ffda59e800000000000000000000000000000000","returnValues":{"0":"50","1":"0xeee947ef3092ba17cf35fc87ffda59e8fc285485","faceValue":"50","issuer":"0xeee947ef3092ba17cf35fc87ffda59e8fc285485","memo":"none"},"event":"RedeemedLotttery","signature":"0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8","raw":{"data":"0x0b7c4bb7eb470aeddbc7e5580bb533287f0cb3fe97eb1e21f46640d1e36dc1f2","topics":["0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8"]},"capture_time":"2018-11-07T12:34:56.78"}	\N
2	1	4171	2018-11-07 12:34:56.79+00	1	0	1	confirmed	efc1a9a3-1dc5-87f9-39c2-a7cd605d4315	da59780c-9df8-2d11-c7f2-867548babecf	0xd56b1fbb9ceba9e80000000000000001fef7323c814003da07b553f48256d1a7	IssuedLottery	0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8	0xa1b33be2bf921b2a221308a27da36f9eb4beaf65	{"address":"0xa1b33be2bf921b2a221308a27da36f9eb4beaf65","blockNumber":4171,"transactionHash":"0xd56b1fbb9ceba9e80000000000000001fef7323c814003da07b553f48256d1a7","transactionIndex":0,"blockHash":"0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8","logIndex":1,"removed":false,"id":"log_0xeee947ef3092ba17cf35fc87ffda59e800000000000000000000000000000001","returnValues":{"0":"50","1":"0xa1b33be2bf921b2a221308a27da36f9eb4beaf65","faceValue":"50","issuer":"0xa1b33be2bf921b2a221308a27da36f9eb4beaf65","memo":"none"},"event":"IssuedLottery","signature":"0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8","raw":{"data":"0xfc59b9ce3d6289c76e00c3aaa8bbb705eb6f5d38fd5e35ecdd752ab977778d83","topics":["0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8"]},"capture_time":"2018-11-07T12:34:56.79"}	\N
3	2	4171	2018-11-07 12:34:56.8+00	1	0	2	confirmed	ea25a481-6a73-1571-f585-d2fc5a3a8534	0d473e37-1e9f-30c8-f2c6-68d1a0dccdc8	0xd56b1fbb9ceba9e80000000000000002b03a6c189a0e4a1fd0e9f204cb04743b	TransferToken	0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8	0x1c151e4f05f92e2e74fc0bb3e08f1f90b90646d2	{"address":"0x1c151e4f05f92e2e74fc0bb3e08f1f90b90646d2","blockNumber":4171,"transactionHash":"0xd56b1fbb9ceba9e80000000000000002b03a6c189a0e4a1fd0e9f204cb04743b","transactionIndex":0,"blockHash":"0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8","logIndex":2,"removed":false,"id":"log_0xeee947ef3092ba17cf35fc87ffda59e800000000000000000000000000000002","returnValues":{"0":"50","1":"0x1c151e4f05f92e2e74fc0bb3e08f1f90b90646d2","faceValue":"50","issuer":"0x1c151e4f05f92e2e74fc0bb3e08f1f90b90646d2","memo":"none"},"event":"TransferToken","signature":"0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8","raw":{"data":"0xd7be114a0f556f30b71a3a3e6bb1a7e3ecf73cf7684efc6dd106a923427e671d","topics":["0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8"]},"capture_time":"2018-11-07T12:34:56.80"}	\N
5	4	4171	2018-11-07 12:34:56.82+00	1	0	4	confirmed	c2d7bd06-fe8f-0e11-c665-1b8eab300a29	041ebb1d-cb36-1ffc-2bc1-318e228bb150	0xd56b1fbb9ceba9e80000000000000004d9a92874c7d24eb632a246ed74523c76	IssuedLottery	0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8	0x2cb19beafceef8876936f7e9b51804f47828c40b	{"address":"0x2cb19beafceef8876936f7e9b51804f47828c40b","blockNumber":4171,"transactionHash":"0xd56b1fbb9ceba9e80000000000000004d9a92874c7d24eb632a246ed74523c76","transactionIndex":0,"blockHash":"0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8","logIndex":4,"removed":false,"id":"log_0xeee947ef3092ba17cf35fc87ffda59e800000000000000000000000000000004","returnValues":{"0":"50","1":"0x2cb19beafceef8876936f7e9b51804f47828c40b","faceValue":"50","issuer":"0x2cb19beafceef8876936f7e9b51804f47828c40b","memo":"none"},"event":"IssuedLottery","signature":"0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8","raw":{"data":"0xa6876cfc47e71e63a367b173c9c131d18ce2ad4bc508c1c7ea389e368a6b273d","topics":["0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8"]},"capture_time":"2018-11-07T12:34:56.82"}	\N
6	5	4171	2018-11-07 12:34:56.83+00	1	0	5	confirmed	d87da218-fcba-5371-9280-d22c40f7decc	47b4427f-b442-7996-4a9a-c1b4b8c075a3	0xd56b1fbb9ceba9e800000000000000054d082eaad7695a2520be5af231a2225b	TransferToken	0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8	0x6e8fd6ff0eb5720b027ed02d8d6c89ecc49fffc2	{"address":"0x6e8fd6ff0eb5720b027ed02d8d6c89ecc49fffc2","blockNumber":4171,"transactionHash":"0xd56b1fbb9ceba9e800000000000000054d082eaad7695a2520be5af231a2225b","transactionIndex":0,"blockHash":"0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8","logIndex":5,"removed":false,"id":"log_0xeee947ef3092ba17cf35fc87ffda59e800000000000000000000000000000005","returnValues":{"0":"50","1":"0x6e8fd6ff0eb5720b027ed02d8d6c89ecc49fffc2","faceValue":"50","issuer":"0x6e8fd6ff0eb5720b027ed02d8d6c89ecc49fffc2","memo":"none"},"event":"TransferToken","signature":"0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8","raw":{"data":"0x14529abb95097caa178ee3221f1cb297ed2bf7865d9229a85f95c8a99375aeb4","topics":["0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8"]},"capture_time":"2018-11-07T12:34:56.83"}	\N
7	6	4171	2018-11-07 12:34:56.84+00	1	0	6	confirmed	0c44750f-95e8-8fdb-c5e2-92ef0565e64c	ebefd406-6235-d868-9217-06d41ddca87e	0xd56b1fbb9ceba9e8000000000000000683401d88fd438b42a197bb79671c1e11	RedeemedLotttery	0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8	0x9abdcf0a9bf32d69c9d6b17f925987cd914c702d	{"address":"0x9abdcf0a9bf32d69c9d6b17f925987cd914c702d","blockNumber":4171,"transactionHash":"0xd56b1fbb9ceba9e8000000000000000683401d88fd438b42a197bb79671c1e11","transactionIndex":0,"blockHash":"0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8","logIndex":6,"removed":false,"id":"log_0xeee947ef3092ba17cf35fc87ffda59e800000000000000000000000000000006","returnValues":{"0":"50","1":"0x9abdcf0a9bf32d69c9d6b17f925987cd914c702d","faceValue":"50","issuer":"0x9abdcf0a9bf32d69c9d6b17f925987cd914c702d","memo":"none"},"event":"RedeemedLotttery","signature":"0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8","raw":{"data":"0x41c6e8173826cbdcd49db5ba7736f8122c492bd8f82d0c02bc645b8b6b97e602","topics":["0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8"]},"capture_time":"2018-11-07T12:34:56.84"}	\N
8	7	4171	2018-11-07 12:34:56.85+00	1	0	7	confirmed	bea83a81-fca0-b7bb-cfa5-ee2b1a2f7ab4	180f22e7-012b-3e7d-b793-afcc57c5b03a	0xd56b1fbb9ceba9e8000000000000000729fe30e124799d92d9cb160b54f0f8cb	IssuedLottery	0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8	0x0f2e8114ceb3d3de85cf8166d3253cf3c01dbd7a	{"address":"0x0f2e8114ceb3d3de85cf8166d3253cf3c01dbd7a","blockNumber":4171,"transactionHash":"0xd56b1fbb9ceba9e8000000000000000729fe30e124799d92d9cb160b54f0f8cb","transactionIndex":0,"blockHash":"0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8","logIndex":7,"removed":false,"id":"log_0xeee947ef3092ba17cf35fc87ffda59e800000000000000000000000000000007","returnValues":{"0":"50","1":"0x0f2e8114ceb3d3de85cf8166d3253cf3c01dbd7a","faceValue":"50","issuer":"0x0f2e8114ceb3d3de85cf8166d3253cf3c01dbd7a","memo":"none"},"event":"IssuedLottery","signature":"0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8","raw":{"data":"0xecee5a69673fb5abe971b2a3976ff1e29b29c8f100ac16e18ceeb757c43fe321","topics":["0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8"]},"capture_time":"2018-11-07T12:34:56.85"}	\N
9	8	4171	2018-11-07 12:34:56.86+00	1	0	8	confirmed	a35d1061-5023-c336-1097-f485786b62ab	65bfd8fc-67ac-fd1a-5857-1eb0119b9aef	0xd56b1fbb9ceba9e800000000000000081da499b76bd39bc3391a8da1ecbd14f7	TransferToken	0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8	0x4332d004f25e7e9885ffc68357d769e0a7d34fb7	{"address":"0x4332d004f25e7e9885ffc68357d769e0a7d34fb7","blockNumber":4171,"transactionHash":"0xd56b1fbb9ceba9e800000000000000081da499b76bd39bc3391a8da1ecbd14f7","transactionIndex":0,"blockHash":"0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8","logIndex":8,"removed":false,"id":"log_0xeee947ef3092ba17cf35fc87ffda59e800000000000000000000000000000008","returnValues":{"0":"50","1":"0x4332d004f25e7e9885ffc68357d769e0a7d34fb7","faceValue":"50","issuer":"0x4332d004f25e7e9885ffc68357d769e0a7d34fb7","memo":"none"},"event":"TransferToken","signature":"0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8","raw":{"data":"0xb83f88a6fae91f95be2db8cacfda8327d969320892b637e49c50d0ec9d8b639b","topics":["0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8"]},"capture_time":"2018-11-07T12:34:56.86"}	\N
10	9	4171	2018-11-07 12:34:56.87+00	1	0	9	confirmed	7e8cad76-4a98-c130-85f9-1c6bd8eef0f1	2fadece4-394d-767b-e830-8016b6167aea	0xd56b1fbb9ceba9e80000000000000009981d9a18954e812589e343b0cbefe475	RedeemedLotttery	0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8	0x53f7f089b4fe8bded375d2a106ac222fc9ef86cc	{"address":"0x53f7f089b4fe8bded375d2a106ac222fc9ef86cc","blockNumber":4171,"transactionHash":"0xd56b1fbb9ceba9e80000000000000009981d9a18954e812589e343b0cbefe475","transactionIndex":0,"blockHash":"0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8","logIndex":9,"removed":false,"id":"log_0xeee947ef3092ba17cf35fc87ffda59e800000000000000000000000000000009","returnValues":{"0":"50","1":"0x53f7f089b4fe8bded375d2a106ac222fc9ef86cc","faceValue":"50","issuer":"0x53f7f089b4fe8bded375d2a106ac222fc9ef86cc","memo":"none"},"event":"RedeemedLotttery","signature":"0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8","raw":{"data":"0x5587afc50aa1d0359b1b0e5aa258584b63ba0edd5b9e0e3adf90fe99e4f15635","topics":["0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8"]},"capture_time":"2018-11-07T12:34:56.87"}	\N
11	10	4171	2018-11-07 12:34:56.88+00	1	0	10	confirmed	00772375-0879-8aa8-a9f9-c26b41ba5117	4faacfb4-4c33-c546-bb89-0b9134bbc142	0xd56b1fbb9ceba9e8000000000000000a6a1c0caec08cb4b7671f83ba9729796d	IssuedLottery	0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8	0x5751a8f26fe4b252a7fe4344d47cb08f38cadb64	{"address":"0x5751a8f26fe4b252a7fe4344d47cb08f38cadb64","blockNumber":4171,"transactionHash":"0xd56b1fbb9ceba9e8000000000000000a6a1c0caec08cb4b7671f83ba9729796d","transactionIndex":0,"blockHash":"0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8","logIndex":10,"removed":false,"id":"log_0xeee947ef3092ba17cf35fc87ffda59e80000000000000000000000000000000a","returnValues":{"0":"50","1":"0x5751a8f26fe4b252a7fe4344d47cb08f38cadb64","faceValue":"50","issuer":"0x5751a8f26fe4b252a7fe4344d47cb08f38cadb64","memo":"none"},"event":"IssuedLottery","signature":"0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8","raw":{"data":"0x79f127613f96ea37056020021778b2168bc734e64549ec49112e9f85908d0360","topics":["0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8"]},"capture_time":"2018-11-07T12:34:56.88"}	\N
12	11	4171	2018-11-07 12:34:56.89+00	1	0	11	confirmed	60fe9f33-9f33-5f82-00f2-6c7318e34d2b	906b017a-8d82-20ce-5890-90bb5e166b17	0xd56b1fbb9ceba9e8000000000000000b317e276802620ee3304480964be61b9f	TransferToken	0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8	0xdcd2aefb6dfbf4da0587475dab037a032a3d84e0	{"address":"0xdcd2aefb6dfbf4da0587475dab037a032a3d84e0","blockNumber":4171,"transactionHash":"0xd56b1fbb9ceba9e8000000000000000b317e276802620ee3304480964be61b9f","transactionIndex":0,"blockHash":"0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8","logIndex":11,"removed":false,"id":"log_0xeee947ef3092ba17cf35fc87ffda59e80000000000000000000000000000000b","returnValues":{"0":"50","1":"0xdcd2aefb6dfbf4da0587475dab037a032a3d84e0","faceValue":"50","issuer":"0xdcd2aefb6dfbf4da0587475dab037a032a3d84e0","memo":"none"},"event":"TransferToken","signature":"0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8","raw":{"data":"0xd58a3f95ea1158de88586fa6526f8b3d9011f81dfba432cda6d91253f6601eaf","topics":["0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8"]},"capture_time":"2018-11-07T12:34:56.89"}	\N
13	12	4171	2018-11-07 12:34:56.9+00	1	0	12	confirmed	bc7f3c61-2e44-27e8-9fba-e4d68eef32a0	5806569f-441f-81ed-ec58-97d52dcc6752	0xd56b1fbb9ceba9e8000000000000000cf5e4e3b67a6bd08bb7d8d99175189098	RedeemedLotttery	0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8	0xb24a467b78ec0277a7c0a9c1fcfec67b6331c65a	{"address":"0xb24a467b78ec0277a7c0a9c1fcfec67b6331c65a","blockNumber":4171,"transactionHash":"0xd56b1fbb9ceba9e8000000000000000cf5e4e3b67a6bd08bb7d8d99175189098","transactionIndex":0,"blockHash":"0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8","logIndex":12,"removed":false,"id":"log_0xeee947ef3092ba17cf35fc87ffda59e80000000000000000000000000000000c","returnValues":{"0":"50","1":"0xb24a467b78ec0277a7c0a9c1fcfec67b6331c65a","faceValue":"50","issuer":"0xb24a467b78ec0277a7c0a9c1fcfec67b6331c65a","memo":"none"},"event":"RedeemedLotttery","signature":"0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8","raw":{"data":"0x1a484663e6da977b1b33d6fd545d29d5894ddcb3c1ffa06b15f2d244cc17f328","topics":["0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8"]},"capture_time":"2018-11-07T12:34:56.90"}	\N
14	13	4171	2018-11-07 12:34:56.91+00	1	0	13	confirmed	df56a4fa-7a5c-f147-0135-2fb04316d5e0	1f7deb3d-d6ea-f0c5-dad9-29db408030c3	0xd56b1fbb9ceba9e8000000000000000d372c8936dbdc8bb00afc581872956c07	IssuedLottery	0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8	0x5f7f87bb1f6130f243ca3cc16f7f2d478c180a67	{"address":"0x5f7f87bb1f6130f243ca3cc16f7f2d478c180a67","blockNumber":4171,"transactionHash":"0xd56b1fbb9ceba9e8000000000000000d372c8936dbdc8bb00afc581872956c07","transactionIndex":0,"blockHash":"0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8","logIndex":13,"removed":false,"id":"log_0xeee947ef3092ba17cf35fc87ffda59e80000000000000000000000000000000d","returnValues":{"0":"50","1":"0x5f7f87bb1f6130f243ca3cc16f7f2d478c180a67","faceValue":"50","issuer":"0x5f7f87bb1f6130f243ca3cc16f7f2d478c180a67","memo":"none"},"event":"IssuedLottery","signature":"0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8","raw":{"data":"0xfe593a87e2e9e8a59a2e1536a17e090b1986d33b867571e93a8d83aafd4c0d6b","topics":["0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8"]},"capture_time":"2018-11-07T12:34:56.91"}	\N
15	14	4171	2018-11-07 12:34:56.92+00	1	0	14	confirmed	eaefa9be-e534-8edd-66a8-eeda6cba8bb7	409d8731-72cb-1757-594b-f343b9619bd2	0xd56b1fbb9ceba9e8000000000000000e7632f8ebf1d5897341de8d999972547c	TransferToken	0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8	0xa01897c9dc9ebf66f89a8ebf9f3d4a1e38249d5b	{"address":"0xa01897c9dc9ebf66f89a8ebf9f3d4a1e38249d5b","blockNumber":4171,"transactionHash":"0xd56b1fbb9ceba9e8000000000000000e7632f8ebf1d5897341de8d999972547c","transactionIndex":0,"blockHash":"0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8","logIndex":14,"removed":false,"id":"log_0xeee947ef3092ba17cf35fc87ffda59e80000000000000000000000000000000e","returnValues":{"0":"50","1":"0xa01897c9dc9ebf66f89a8ebf9f3d4a1e38249d5b","faceValue":"50","issuer":"0xa01897c9dc9ebf66f89a8ebf9f3d4a1e38249d5b","memo":"none"},"event":"TransferToken","signature":"0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8","raw":{"data":"0xf47a27b39081de14da71df777411078fa3229337905bf8c01af26c4945dedfc0","topics":["0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8"]},"capture_time":"2018-11-07T12:34:56.92"}	\N
16	15	4171	2018-11-07 12:34:56.93+00	1	0	15	confirmed	c5ee121e-3e93-989b-bab8-ca2e38e25fa7	7a1a2f33-96fe-d898-b69a-62623ced5680	0xd56b1fbb9ceba9e8000000000000000f27061f6de5a03305c839e54a23432229	RedeemedLotttery	0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8	0xb7ae6e8ad5f80f2a40f067b7a40e0424699ef8c2	{"address":"0xb7ae6e8ad5f80f2a40f067b7a40e0424699ef8c2","blockNumber":4171,"transactionHash":"0xd56b1fbb9ceba9e8000000000000000f27061f6de5a03305c839e54a23432229","transactionIndex":0,"blockHash":"0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8","logIndex":15,"removed":false,"id":"log_0xeee947ef3092ba17cf35fc87ffda59e80000000000000000000000000000000f","returnValues":{"0":"50","1":"0xb7ae6e8ad5f80f2a40f067b7a40e0424699ef8c2","faceValue":"50","issuer":"0xb7ae6e8ad5f80f2a40f067b7a40e0424699ef8c2","memo":"none"},"event":"RedeemedLotttery","signature":"0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8","raw":{"data":"0x9ee7d92ab7b77b9333f89a1dd0a7f376df2fb328050aa0999a79a6c56551effb","topics":["0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8"]},"capture_time":"2018-11-07T12:34:56.93"}	\N
17	16	4171	2018-11-07 12:34:56.94+00	1	0	16	confirmed	d0ac1cd9-1e6b-c556-6d07-4650ad8072aa	300eb8ed-fbae-b0c5-0784-fbad3e291dd8	0xd56b1fbb9ceba9e80000000000000010c98208c703e44763b97c70546d3ba165	IssuedLottery	0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8	0x7f6d09adb3011c38a9d3babdcc7e8bb879842939	{"address":"0x7f6d09adb3011c38a9d3babdcc7e8bb879842939","blockNumber":4171,"transactionHash":"0xd56b1fbb9ceba9e80000000000000010c98208c703e44763b97c70546d3ba165","transactionIndex":0,"blockHash":"0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8","logIndex":16,"removed":false,"id":"log_0xeee947ef3092ba17cf35fc87ffda59e800000000000000000000000000000010","returnValues":{"0":"50","1":"0x7f6d09adb3011c38a9d3babdcc7e8bb879842939","faceValue":"50","issuer":"0x7f6d09adb3011c38a9d3babdcc7e8bb879842939","memo":"none"},"event":"IssuedLottery","signature":"0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8","raw":{"data":"0xf13d26f41a4a3adc39ddd101a568dd023fe4622c62ee18c068025b81d252cf36","topics":["0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8"]},"capture_time":"2018-11-07T12:34:56.94"}	\N
18	17	4171	2018-11-07 12:34:56.95+00	1	0	17	confirmed	81e89f3c-0045-6611-d9ad-b2449c47aa12	07548355-b381-4145-3840-6c15e900569b	0xd56b1fbb9ceba9e80000000000000011cb5d5de030720c8b6a3b3e5270562477	TransferToken	0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8	0x021d3a8163f4e1ea2a344594eab93a143da05528	{"address":"0x021d3a8163f4e1ea2a344594eab93a143da05528","blockNumber":4171,"transactionHash":"0xd56b1fbb9ceba9e80000000000000011cb5d5de030720c8b6a3b3e5270562477","transactionIndex":0,"blockHash":"0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8","logIndex":17,"removed":false,"id":"log_0xeee947ef3092ba17cf35fc87ffda59e800000000000000000000000000000011","returnValues":{"0":"50","1":"0x021d3a8163f4e1ea2a344594eab93a143da05528","faceValue":"50","issuer":"0x021d3a8163f4e1ea2a344594eab93a143da05528","memo":"none"},"event":"TransferToken","signature":"0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8","raw":{"data":"0x23446e20b5483500f1cca0dad490ad6b4092a8f117e2b5b2d57a12c27d14ca11","topics":["0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8"]},"capture_time":"2018-11-07T12:34:56.95"}	\N
19	18	4171	2018-11-07 12:34:56.96+00	1	0	18	confirmed	15eda2ac-643e-2793-1809-b7bb68cf768d	ef76c8bd-1730-0f0f-93ff-724718c3958f	0xd56b1fbb9ceba9e80000000000000012a764ae3fea1c7d8cfd1240da4b8b90cf	RedeemedLotttery	0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8	0x666ca9ad467ea655cf81498a9c3dd00a24493cc5	{"address":"0x666ca9ad467ea655cf81498a9c3dd00a24493cc5","blockNumber":4171,"transactionHash":"0xd56b1fbb9ceba9e80000000000000012a764ae3fea1c7d8cfd1240da4b8b90cf","transactionIndex":0,"blockHash":"0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8","logIndex":18,"removed":false,"id":"log_0xeee947ef3092ba17cf35fc87ffda59e800000000000000000000000000000012","returnValues":{"0":"50","1":"0x666ca9ad467ea655cf81498a9c3dd00a24493cc5","faceValue":"50","issuer":"0x666ca9ad467ea655cf81498a9c3dd00a24493cc5","memo":"none"},"event":"RedeemedLotttery","signature":"0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8","raw":{"data":"0x4c3eb99a87762ecfbe499925332260d533e976846e300af8e361758ca94ec308","topics":["0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8"]},"capture_time":"2018-11-07T12:34:56.96"}	\N
20	19	4171	2018-11-07 12:34:56.97+00	1	0	19	confirmed	6122a093-1c15-6bbc-cac9-509ce053f265	ff869328-139f-23da-350a-3e10cd128dd5	0xd56b1fbb9ceba9e8000000000000001306b69e7952423d5761732ccceef55c84	IssuedLottery	0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8	0xd6bed44ddc0d02c0f872255223aa78231a562af2	{"address":"0xd6bed44ddc0d02c0f872255223aa78231a562af2","blockNumber":4171,"transactionHash":"0xd56b1fbb9ceba9e8000000000000001306b69e7952423d5761732ccceef55c84","transactionIndex":0,"blockHash":"0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8","logIndex":19,"removed":false,"id":"log_0xeee947ef3092ba17cf35fc87ffda59e800000000000000000000000000000013","returnValues":{"0":"50","1":"0xd6bed44ddc0d02c0f872255223aa78231a562af2","faceValue":"50","issuer":"0xd6bed44ddc0d02c0f872255223aa78231a562af2","memo":"none"},"event":"IssuedLottery","signature":"0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8","raw":{"data":"0x4d4cd7ecc081fd8d2b3bff1854713ca39d466bb2a895d4b5c9968f9ac71eb9b7","topics":["0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8"]},"capture_time":"2018-11-07T12:34:56.97"}	\N
21	28	4171	2018-11-07 12:34:56.98+00	1	0	20	confirmed	01b3f0f7-0811-b9bf-b990-fc76c3293448	19ed1575-f053-fc5d-2348-f66e3d52db64	0xd56b1fbb9ceba9e80000000000000014d6bee096c22000c2b28325359cdf4bfb	TransferToken	0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8	0x4ed41a0146c5f9f5b464e9f1a30a5aada864e2c3	{"address":"0x4ed41a0146c5f9f5b464e9f1a30a5aada864e2c3","blockNumber":4171,"transactionHash":"0xd56b1fbb9ceba9e80000000000000014d6bee096c22000c2b28325359cdf4bfb","transactionIndex":0,"blockHash":"0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8","logIndex":20,"removed":false,"id":"log_0xeee947ef3092ba17cf35fc87ffda59e800000000000000000000000000000014","returnValues":{"0":"50","1":"0x4ed41a0146c5f9f5b464e9f1a30a5aada864e2c3","faceValue":"50","issuer":"0x4ed41a0146c5f9f5b464e9f1a30a5aada864e2c3","memo":"none"},"event":"TransferToken","signature":"0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8","raw":{"data":"0x08ec01b400f5a93f1a62fcb48801d5275ac5911eb35ee65574898d18cf6eb197","topics":["0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8"]},"capture_time":"2018-11-07T12:34:56.98"}	\N
22	29	4171	2018-11-07 12:34:56.99+00	1	0	21	confirmed	a94b5575-4bad-be73-cf78-59ffb4277a08	03a2ba6c-8baa-0299-4bd9-25e2d3d4527c	0xd56b1fbb9ceba9e8000000000000001555cf48e4775b557213aa877c459669be	RedeemedLotttery	0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8	0xdba40f39e0dc3676b8f31c78e001fef9c420f243	{"address":"0xdba40f39e0dc3676b8f31c78e001fef9c420f243","blockNumber":4171,"transactionHash":"0xd56b1fbb9ceba9e8000000000000001555cf48e4775b557213aa877c459669be","transactionIndex":0,"blockHash":"0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8","logIndex":21,"removed":false,"id":"log_0xeee947ef3092ba17cf35fc87ffda59e800000000000000000000000000000015","returnValues":{"0":"50","1":"0xdba40f39e0dc3676b8f31c78e001fef9c420f243","faceValue":"50","issuer":"0xdba40f39e0dc3676b8f31c78e001fef9c420f243","memo":"none"},"event":"RedeemedLotttery","signature":"0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8","raw":{"data":"0x5cf013fd399f0ebb41345dd4f5cc5cf6c97ef3d47dcfe98e07d2d988a8d41c66","topics":["0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8"]},"capture_time":"2018-11-07T12:34:56.99"}	\N
23	30	4171	2018-11-07 12:34:57+00	1	0	22	confirmed	4ed75688-3e67-9c7d-ba10-df32ca4b1b07	5213c4ff-3699-5ecb-9a73-c3dace8472e0	0xd56b1fbb9ceba9e80000000000000016abd97105675868e0ec33ac6c1c5dead3	IssuedLottery	0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8	0x2b94896a1bf105f472c837478e953ac3a96d93aa	{"address":"0x2b94896a1bf105f472c837478e953ac3a96d93aa","blockNumber":4171,"transactionHash":"0xd56b1fbb9ceba9e80000000000000016abd97105675868e0ec33ac6c1c5dead3","transactionIndex":0,"blockHash":"0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8","logIndex":22,"removed":false,"id":"log_0xeee947ef3092ba17cf35fc87ffda59e800000000000000000000000000000016","returnValues":{"0":"50","1":"0x2b94896a1bf105f472c837478e953ac3a96d93aa","faceValue":"50","issuer":"0x2b94896a1bf105f472c837478e953ac3a96d93aa","memo":"none"},"event":"IssuedLottery","signature":"0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8","raw":{"data":"0x728a46f8c24b110d3b166cf6d28622c8d822da77d48673c7086da87e128c5fa8","topics":["0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8"]},"capture_time":"2018-11-07T12:34:57.00"}	\N
24	31	4171	2018-11-07 12:34:57.01+00	1	0	23	confirmed	979d1600-6ac9-563b-abfb-d2192767a5ee	7c3a58f8-c0a9-24f4-1899-5c16ae6fb148	0xd56b1fbb9ceba9e8000000000000001766a439ab5cda99bec7ed92f71c9decf0	TransferToken	0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8	0x0f531ca276f497be964f72f21fd1b156957cdd86	{"address":"0x0f531ca276f497be964f72f21fd1b156957cdd86","blockNumber":4171,"transactionHash":"0xd56b1fbb9ceba9e8000000000000001766a439ab5cda99bec7ed92f71c9decf0","transactionIndex":0,"blockHash":"0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8","logIndex":23,"removed":false,"id":"log_0xeee947ef3092ba17cf35fc87ffda59e800000000000000000000000000000017","returnValues":{"0":"50","1":"0x0f531ca276f497be964f72f21fd1b156957cdd86","faceValue":"50","issuer":"0x0f531ca276f497be964f72f21fd1b156957cdd86","memo":"none"},"event":"TransferToken","signature":"0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8","raw":{"data":"0x12ca22d21d7384ca41f9a68ee9622b17b73757476d85e2f1107adf8c44a91783","topics":["0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8"]},"capture_time":"2018-11-07T12:34:57.01"}	\N
25	36	4171	2018-11-07 12:34:57.04+00	1	0	26	confirmed	a01519d9-8d85-39cf-4032-bc934544e773	3c7087a8-5ffd-2c6b-2368-8ab4ad9b0cc5	0xd56b1fbb9ceba9e8000000000000001aaf541069ec46882290d3fe62cdc412a3	TransferToken	0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8	0x27966d29ef6b4a85893c1696e0c43707c5ef883b	{"address":"0x27966d29ef6b4a85893c1696e0c43707c5ef883b","blockNumber":4171,"transactionHash":"0xd56b1fbb9ceba9e8000000000000001aaf541069ec46882290d3fe62cdc412a3","transactionIndex":0,"blockHash":"0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8","logIndex":26,"removed":false,"id":"log_0xeee947ef3092ba17cf35fc87ffda59e80000000000000000000000000000001a","returnValues":{"0":"50","1":"0x27966d29ef6b4a85893c1696e0c43707c5ef883b","faceValue":"50","issuer":"0x27966d29ef6b4a85893c1696e0c43707c5ef883b","memo":"none"},"event":"TransferToken","signature":"0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8","raw":{"data":"0x683182143ac24f594722e12a55a778bb004d90c4a30b7f20995bf97675befbe9","topics":["0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8"]},"capture_time":"2018-11-07T12:34:57.04"}	\N
26	37	4171	2018-11-07 12:34:57.05+00	1	0	27	confirmed	c90a74f1-8a28-7536-09b4-ef9b49ed915d	d7920d29-c776-c391-355b-04d6bfd5ee63	0xd56b1fbb9ceba9e8000000000000001bb971a6a298b21ff696c55e6ab570cd15	RedeemedLotttery	0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8	0x503d323517d65cab0fddb0ec80ee9f668099aaa1	{"address":"0x503d323517d65cab0fddb0ec80ee9f668099aaa1","blockNumber":4171,"transactionHash":"0xd56b1fbb9ceba9e8000000000000001bb971a6a298b21ff696c55e6ab570cd15","transactionIndex":0,"blockHash":"0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8","logIndex":27,"removed":false,"id":"log_0xeee947ef3092ba17cf35fc87ffda59e80000000000000000000000000000001b","returnValues":{"0":"50","1":"0x503d323517d65cab0fddb0ec80ee9f668099aaa1","faceValue":"50","issuer":"0x503d323517d65cab0fddb0ec80ee9f668099aaa1","memo":"none"},"event":"RedeemedLotttery","signature":"0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8","raw":{"data":"0x4601df053fa31cb57cf302249563c19da0b331397d299a1134b276f0d623c67c","topics":["0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8"]},"capture_time":"2018-11-07T12:34:57.05"}	\N
27	38	4171	2018-11-07 12:34:57.06+00	1	0	28	confirmed	1bf43251-8932-abc8-8fef-edfe49ab53c6	6907a231-8451-ce71-708a-4bdfbb598d61	0xd56b1fbb9ceba9e8000000000000001cb2ea364d4bcda04a36dec7f7b2d4e273	IssuedLottery	0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8	0x10e4c3cd98f9e0e6d9d7224deee314bb0e2eca49	{"address":"0x10e4c3cd98f9e0e6d9d7224deee314bb0e2eca49","blockNumber":4171,"transactionHash":"0xd56b1fbb9ceba9e8000000000000001cb2ea364d4bcda04a36dec7f7b2d4e273","transactionIndex":0,"blockHash":"0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8","logIndex":28,"removed":false,"id":"log_0xeee947ef3092ba17cf35fc87ffda59e80000000000000000000000000000001c","returnValues":{"0":"50","1":"0x10e4c3cd98f9e0e6d9d7224deee314bb0e2eca49","faceValue":"50","issuer":"0x10e4c3cd98f9e0e6d9d7224deee314bb0e2eca49","memo":"none"},"event":"IssuedLottery","signature":"0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8","raw":{"data":"0xe5551c42d70120d2a4b8100dc2a5b829c4d2d52caf054fbe77feeac6929daf4a","topics":["0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8"]},"capture_time":"2018-11-07T12:34:57.06"}	\N
28	39	4171	2018-11-07 12:34:57.07+00	1	0	29	confirmed	b5a31cdc-7f4e-1750-4e5a-145f2b221c60	988de3b9-e358-3492-233a-16efc878f777	0xd56b1fbb9ceba9e8000000000000001d0f7c8b1df217eb467003258488ebc10e	TransferToken	0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8	0x8822744a0fca6749cacef7d600eaacfc3923c0ce	{"address":"0x8822744a0fca6749cacef7d600eaacfc3923c0ce","blockNumber":4171,"transactionHash":"0xd56b1fbb9ceba9e8000000000000001d0f7c8b1df217eb467003258488ebc10e","transactionIndex":0,"blockHash":"0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8","logIndex":29,"removed":false,"id":"log_0xeee947ef3092ba17cf35fc87ffda59e80000000000000000000000000000001d","returnValues":{"0":"50","1":"0x8822744a0fca6749cacef7d600eaacfc3923c0ce","faceValue":"50","issuer":"0x8822744a0fca6749cacef7d600eaacfc3923c0ce","memo":"none"},"event":"TransferToken","signature":"0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8","raw":{"data":"0x37c0b477ab6b60511c4aef735ab991baffa7778641fa017a018850db6f549f30","topics":["0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8"]},"capture_time":"2018-11-07T12:34:57.07"}	\N
4	3	4171	2018-11-07 12:34:56.81+00	1	0	3	removed	9dcf2a0d-5465-cd19-7849-58a2ddfe7ebd	d7402089-0548-aa84-1669-ddf21610cfd4	0xd56b1fbb9ceba9e8000000000000000334e04ea8a3bcd8f32c1c1e4c5aa72796	RedeemedLotttery	0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8	0x0e47cf0076ef9af8928f9589d831d19a0266843d	{"address":"0x0e47cf0076ef9af8928f9589d831d19a0266843d","blockNumber":4171,"transactionHash":"0xd56b1fbb9ceba9e8000000000000000334e04ea8a3bcd8f32c1c1e4c5aa72796","transactionIndex":0,"blockHash":"0xed183490b02bd5faeb1b24b7a974960beee947ef3092ba17cf35fc87ffda59e8","logIndex":3,"removed":false,"id":"log_0xeee947ef3092ba17cf35fc87ffda59e800000000000000000000000000000003","returnValues":{"0":"50","1":"0x0e47cf0076ef9af8928f9589d831d19a0266843d","faceValue":"50","issuer":"0x0e47cf0076ef9af8928f9589d831d19a0266843d","memo":"none"},"event":"RedeemedLotttery","signature":"0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8","raw":{"data":"0xb5a921dfa890cc985e74cbd82293d3e0cd06aada7c652e95106cfee8ccac289a","topics":["0x225668dc003423e36bd8d7793625f5e7b40fd2e20a878f131af633c1d6cc88a8"]},"capture_time":"2018-11-07T12:34:56.81"}	\N
\.


--
-- Data for Name: writers; Type: TABLE DATA; Schema: gapless; Owner: -
--

COPY gapless.writers (fence, token, topic, instance, started_at) FROM stdin;
1	8d837d32-c947-47d3-b1bb-14146fb44e49	topic_17765_85004674_0	gapless 0.1.0 on vm (pid 17822)	2026-11-28 16:56:47.557089+00
\.


--
-- Name: conflicting_events_id_seq; Type: SEQUENCE SET; Schema: gapless; Owner: -
--

SELECT pg_catalog.setval('gapless.conflicting_events_id_seq', 1, false);


--
-- Name: decisions_id_seq; Type: SEQUENCE SET; Schema: gapless; Owner: -
--

SELECT pg_catalog.setval('gapless.decisions_id_seq', 1, false);


--
-- Name: event_ids; Type: SEQUENCE SET; Schema: gapless; Owner: -
--

SELECT pg_catalog.setval('gapless.event_ids', 1, true);


--
-- Name: format_history_id_seq; Type: SEQUENCE SET; Schema: gapless; Owner: -
--

SELECT pg_catalog.setval('gapless.format_history_id_seq', 1, true);


--
-- Name: gaps_id_seq; Type: SEQUENCE SET; Schema: gapless; Owner: -
--

SELECT pg_catalog.setval('gapless.gaps_id_seq', 2, true);


--
-- Name: positions_id_seq; Type: SEQUENCE SET; Schema: gapless; Owner: -
--

SELECT pg_catalog.setval('gapless.positions_id_seq', 1, true);


--
-- Name: sources_id_seq; Type: SEQUENCE SET; Schema: gapless; Owner: -
--

SELECT pg_catalog.setval('gapless.sources_id_seq', 1, true);


--
-- Name: writers_fence_seq; Type: SEQUENCE SET; Schema: gapless; Owner: -
--

SELECT pg_catalog.setval('gapless.writers_fence_seq', 1, true);


--
-- Name: audits audits_pkey; Type: CONSTRAINT; Schema: gapless; Owner: -
--

ALTER TABLE ONLY gapless.audits
    ADD CONSTRAINT audits_pkey PRIMARY KEY (position_id);


--
-- Name: conflicting_events conflicting_events_identity_content_digest_key; Type: CONSTRAINT; Schema: gapless; Owner: -
--

ALTER TABLE ONLY gapless.conflicting_events
    ADD CONSTRAINT conflicting_events_identity_content_digest_key UNIQUE (identity, content_digest);


--
-- Name: conflicting_events conflicting_events_pkey; Type: CONSTRAINT; Schema: gapless; Owner: -
--

ALTER TABLE ONLY gapless.conflicting_events
    ADD CONSTRAINT conflicting_events_pkey PRIMARY KEY (id);


--
-- Name: decisions decisions_pkey; Type: CONSTRAINT; Schema: gapless; Owner: -
--

ALTER TABLE ONLY gapless.decisions
    ADD CONSTRAINT decisions_pkey PRIMARY KEY (id);


--
-- Name: format_history format_history_pkey; Type: CONSTRAINT; Schema: gapless; Owner: -
--

ALTER TABLE ONLY gapless.format_history
    ADD CONSTRAINT format_history_pkey PRIMARY KEY (id);


--
-- Name: gaps gaps_pkey; Type: CONSTRAINT; Schema: gapless; Owner: -
--

ALTER TABLE ONLY gapless.gaps
    ADD CONSTRAINT gaps_pkey PRIMARY KEY (id);


--
-- Name: late_offsets late_offsets_pkey; Type: CONSTRAINT; Schema: gapless; Owner: -
--

ALTER TABLE ONLY gapless.late_offsets
    ADD CONSTRAINT late_offsets_pkey PRIMARY KEY (position_id, revision);


--
-- Name: ledger ledger_pkey; Type: CONSTRAINT; Schema: gapless; Owner: -
--

ALTER TABLE ONLY gapless.ledger
    ADD CONSTRAINT ledger_pkey PRIMARY KEY (singleton);


--
-- Name: log_ends log_ends_pkey; Type: CONSTRAINT; Schema: gapless; Owner: -
--

ALTER TABLE ONLY gapless.log_ends
    ADD CONSTRAINT log_ends_pkey PRIMARY KEY (position_id);


--
-- Name: outcomes outcomes_pkey; Type: CONSTRAINT; Schema: gapless; Owner: -
--

ALTER TABLE ONLY gapless.outcomes
    ADD CONSTRAINT outcomes_pkey PRIMARY KEY (position_id, "offset");


--
-- Name: positions positions_pkey; Type: CONSTRAINT; Schema: gapless; Owner: -
--

ALTER TABLE ONLY gapless.positions
    ADD CONSTRAINT positions_pkey PRIMARY KEY (id);


--
-- Name: positions positions_source_id_partition_id_key; Type: CONSTRAINT; Schema: gapless; Owner: -
--

ALTER TABLE ONLY gapless.positions
    ADD CONSTRAINT positions_source_id_partition_id_key UNIQUE (source_id, partition_id);


--
-- Name: recorded_states recorded_states_pkey; Type: CONSTRAINT; Schema: gapless; Owner: -
--

ALTER TABLE ONLY gapless.recorded_states
    ADD CONSTRAINT recorded_states_pkey PRIMARY KEY (position_id);


--
-- Name: refinery_schema_history refinery_schema_history_pkey; Type: CONSTRAINT; Schema: gapless; Owner: -
--

ALTER TABLE ONLY gapless.refinery_schema_history
    ADD CONSTRAINT refinery_schema_history_pkey PRIMARY KEY (version);


--
-- Name: rejected_messages rejected_messages_pkey; Type: CONSTRAINT; Schema: gapless; Owner: -
--

ALTER TABLE ONLY gapless.rejected_messages
    ADD CONSTRAINT rejected_messages_pkey PRIMARY KEY (position_id, "offset");


--
-- Name: sources sources_pkey; Type: CONSTRAINT; Schema: gapless; Owner: -
--

ALTER TABLE ONLY gapless.sources
    ADD CONSTRAINT sources_pkey PRIMARY KEY (id);


--
-- Name: sources sources_topic_generation_key; Type: CONSTRAINT; Schema: gapless; Owner: -
--

ALTER TABLE ONLY gapless.sources
    ADD CONSTRAINT sources_topic_generation_key UNIQUE (topic, generation);


--
-- Name: start_orders start_orders_pkey; Type: CONSTRAINT; Schema: gapless; Owner: -
--

ALTER TABLE ONLY gapless.start_orders
    ADD CONSTRAINT start_orders_pkey PRIMARY KEY (topic);


--
-- Name: stored_events stored_events_identity_key; Type: CONSTRAINT; Schema: gapless; Owner: -
--

ALTER TABLE ONLY gapless.stored_events
    ADD CONSTRAINT stored_events_identity_key UNIQUE (identity);


--
-- Name: stored_events stored_events_pkey; Type: CONSTRAINT; Schema: gapless; Owner: -
--

ALTER TABLE ONLY gapless.stored_events
    ADD CONSTRAINT stored_events_pkey PRIMARY KEY (id);


--
-- Name: writers writers_pkey; Type: CONSTRAINT; Schema: gapless; Owner: -
--

ALTER TABLE ONLY gapless.writers
    ADD CONSTRAINT writers_pkey PRIMARY KEY (fence);


--
-- Name: conflicting_events_position; Type: INDEX; Schema: gapless; Owner: -
--

CREATE INDEX conflicting_events_position ON gapless.conflicting_events USING btree (position_id, "offset");


--
-- Name: format_history_position; Type: INDEX; Schema: gapless; Owner: -
--

CREATE INDEX format_history_position ON gapless.format_history USING btree (position_id, id);


--
-- Name: gaps_position; Type: INDEX; Schema: gapless; Owner: -
--

CREATE INDEX gaps_position ON gapless.gaps USING btree (position_id, to_offset);


--
-- Name: rejected_messages_open; Type: INDEX; Schema: gapless; Owner: -
--

CREATE INDEX rejected_messages_open ON gapless.rejected_messages USING btree (position_id, "offset") WHERE (state = 'open'::text);


--
-- Name: stored_events_position; Type: INDEX; Schema: gapless; Owner: -
--

CREATE INDEX stored_events_position ON gapless.stored_events USING btree (position_id, "offset");


--
-- Name: decisions decisions_append_only; Type: TRIGGER; Schema: gapless; Owner: -
--

CREATE TRIGGER decisions_append_only BEFORE DELETE OR UPDATE OR TRUNCATE ON gapless.decisions FOR EACH STATEMENT EXECUTE FUNCTION gapless.refuse_change();


--
-- Name: format_history format_history_position_id_fkey; Type: FK CONSTRAINT; Schema: gapless; Owner: -
--

ALTER TABLE ONLY gapless.format_history
    ADD CONSTRAINT format_history_position_id_fkey FOREIGN KEY (position_id) REFERENCES gapless.positions(id);


--
-- Name: positions positions_source_id_fkey; Type: FK CONSTRAINT; Schema: gapless; Owner: -
--

ALTER TABLE ONLY gapless.positions
    ADD CONSTRAINT positions_source_id_fkey FOREIGN KEY (source_id) REFERENCES gapless.sources(id);


--
-- PostgreSQL database dump complete
--

\unrestrict fyjJZx4Aw8OrhfskbVGKyByZuXgr6KEBNj7ROZa0ptmIZi2MELaY2DtlW3cISdO

