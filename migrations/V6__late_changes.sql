-- Late changes for readers by position, the log ends that were last seen, and decisions with who and how.
-- Adds columns, tables and functions only; a daemon of the version before may still run.

-- announced_to: the highest next_offset before the position was set back for the last time; what is filled in below it
-- comes late for a reader. late_revision: the last number given in late_offsets.
alter table gapless.positions
    add column announced_to  bigint not null default 0,
    add column late_revision bigint not null default 0;

-- A position that was set back before this version, and is on its way again.
update gapless.positions p
set announced_to = coalesce((select o."offset" + 1 from gapless.outcomes o
                              where o.position_id = p.id and o."offset" >= p.next_offset
                              order by o."offset" desc limit 1), 0);

-- Offsets below the position whose outcome or events were filled in or changed. The revision is counted on the
-- position's row, whose lock lasts until the commit: so the order of the numbers is the order of the commits.
create table gapless.late_offsets (
    position_id integer not null,
    revision    bigint not null,
    "offset"    bigint not null,
    changed_at  timestamptz not null default clock_timestamp(),
    primary key (position_id, revision)
);

create view gapless.late_changes as
select s.topic, s.generation, p.partition_id, c."offset", c.revision, c.changed_at
from gapless.late_offsets c
join gapless.positions p on p.id = c.position_id
join gapless.sources s on s.id = p.source_id;

-- Locks positions in the order of their ids, then numbers those of the places (position_ids, offsets) at which a reader
-- may have been before. Among the last statements of a transaction; `moving` are positions that it moves afterwards.
create function gapless.note_late_changes(position_ids integer[], offsets bigint[], moving integer[]) returns void
language plpgsql as $$
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

-- The highest log end that was seen while the log was the one that is read: how much of a log was never read can be
-- told after it is gone. Beside the positions, so that a look at Kafka never waits for a batch.
create table gapless.log_ends (
    position_id integer primary key,
    log_end     bigint not null,
    seen_at     timestamptz not null default now()
);

-- Who decided, how, and what came of it; null in rows of an earlier version. A reason is given where a verb asks for one.
alter table gapless.decisions
    alter column reason drop not null,
    add column db_role         text,
    add column os_user         text,
    add column arguments       jsonb,
    add column rows_changed    bigint,
    add column program_version text;

create function gapless.refuse_change() returns trigger language plpgsql as $$
begin
    raise exception 'gapless.% is append-only: % is refused', tg_table_name, lower(tg_op)
        using errcode = 'restrict_violation';
end $$;

create trigger decisions_append_only before update or delete or truncate on gapless.decisions
for each statement execute function gapless.refuse_change();
