-- Which format wrote the rows of which messages, so that `verify` can hold contents against the messages; and an index by
-- which it walks conflicts in offset order.
-- Adds a table and an index only; a daemon of the version before may still run.

-- Messages from from_offset on, up to to_offset (exclusive; null: on and on), were decoded in this way by a start, a partition
-- that was taken up, or a replay. Where several rows hold for an offset, any of them may have written it: a position that was
-- set back leaves what has an outcome as it is.
create table gapless.format_history (
    id              bigint generated always as identity primary key,
    position_id     integer not null references gapless.positions (id),
    from_offset     bigint not null check (from_offset >= 0),
    to_offset       bigint check (to_offset > from_offset),
    format          text not null,
    mapping_digest  uuid,
    identity_fields text not null,
    program_version text not null,
    recorded_at     timestamptz not null default now()
);
create index format_history_position on gapless.format_history (position_id, id);

create index conflicting_events_position on gapless.conflicting_events (position_id, "offset");
