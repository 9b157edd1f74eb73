-- What operators decided, and why: every verb that changes what became of a message leaves a row.
-- Adds a table only; a daemon of the version before may still run.
create table gapless.decisions (
    id         bigint generated always as identity primary key,
    decided_at timestamptz not null default now(),
    verb       text not null,
    subject    text not null,
    reason     text not null
);
