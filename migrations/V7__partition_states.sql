-- What the daemon knows of its partitions beside their positions, so that it is known while no daemon runs.

-- Partitions that are not being read, and why; written at transitions by the start that holds the fence, and confirmed
-- now and then. A partition without a row is being read, or was when its daemon ended.
create table gapless.recorded_states (
    position_id integer primary key,
    fence       bigint not null,
    state       text not null check (state in ('suspended', 'halted')),
    reason      text not null,
    detail      text not null,
    from_offset bigint,
    to_offset   bigint,
    remedy      text not null,
    since       timestamptz not null default now(),
    updated_at  timestamptz not null default now()
);

-- The running count of offsets with neither outcome nor gap: of which range, and how many it found.
create table gapless.audits (
    position_id  integer primary key,
    counted_from bigint not null,
    counted_to   bigint not null,
    missing      bigint not null,
    counted_at   timestamptz not null default now(),
    check (counted_from <= counted_to)
);

-- Open dead letters are counted without looking at those that were replayed or discarded.
create index rejected_messages_open on gapless.rejected_messages (position_id, "offset") where state = 'open';

create view gapless.partition_states as
select s.topic, s.generation, p.partition_id, r.state, r.reason, r.detail, r.from_offset, r.to_offset, r.remedy,
       r.since, r.updated_at, r.fence, w.instance
from gapless.recorded_states r
join gapless.positions p on p.id = r.position_id
join gapless.sources s on s.id = p.source_id
left join gapless.writers w on w.fence = r.fence;
