# The tasks of this repository. `make` without a target lists them.

SHELL := /bin/bash
.DEFAULT_GOAL := help
# The steps never run in parallel, also with -j, because they share cargo's lock and the sandbox.
.NOTPARALLEL:
.PHONY: help setup demo build release test test-connections chaos chaos-sweep bench bench-peers lint check fmt doc docs deny machete advisories mutants catalogue up down status clean

sandbox := deploy/sandbox
features := --features failpoints
# The JVM options that Kafka's documentation recommends for a broker ("Java Version"), with all memory allocated at the
# start. Young collections have a target of 20 ms: they take 8 to 15 ms every ten seconds at 1,000 messages per second;
# without the target they were rarer and took 20 to 85 ms. Objects that survive two collections move to the old
# generation, as in a broker that has run for days; by default a young collection copies them up to fifteen times.
bench: export SANDBOX_KAFKA_JVM = -Xms6g -Xmx6g -XX:MetaspaceSize=96m -XX:+UseG1GC -XX:MaxGCPauseMillis=20 \
	-XX:InitiatingHeapOccupancyPercent=35 -XX:G1HeapRegionSize=16M -XX:MinMetaspaceFreeRatio=50 \
	-XX:MaxMetaspaceFreeRatio=80 -XX:+ExplicitGCInvokesConcurrent -XX:+AlwaysPreTouch -XX:MaxTenuringThreshold=1
# The tests make the broker run these checks every second; the benchmark runs them as rarely as Kafka's defaults.
define default_check_intervals
log.retention.check.interval.ms=300000
log.cleaner.backoff.ms=15000
transaction.abort.timed.out.transaction.cleanup.interval.ms=10000
broker.heartbeat.interval.ms=2000
broker.session.timeout.ms=9000
endef
bench: export SANDBOX_KAFKA_PROPERTIES = $(default_check_intervals)
bench = sh -c 'exec target/release/examples/bench run --brokers "$$GAPLESS_TEST_KAFKA" --database-url "$$GAPLESS_TEST_DATABASE_URL" \
	$(if $(MESSAGES),--messages $(MESSAGES)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(GROWTH),--growth $(GROWTH)) \
	$(if $(ONLY),--only $(ONLY)) $(if $(EVENTS_PER_MESSAGE),--events-per-message $(EVENTS_PER_MESSAGE) --programs target/with-lists/release) \
	$(if $(YARDSTICK),--yardstick $(YARDSTICK)) "$$@"' bench
campaign := cargo test --locked $(features) --bins --test integration -- --ignored --nocapture --exact

help: ## list the tasks
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1\t\2/p' Makefile | expand -t 12

setup: ## install the tools for building and testing (as root; otherwise print the commands)
	@$(sandbox)/setup

demo: setup ## send real events through real servers and print the resulting tables
	@$(sandbox)/demo

build: setup ## debug build
	cargo build --locked

release: setup ## release build: target/release/gapless
	cargo build --locked --release

# The integration tests run last, so that the last lines are the summary of the most important tests. They mostly wait
# for servers, so more of them run at the same time than there are cores.
test: setup ## all tests, the integration tests on real servers
	cargo test --locked $(features) --doc
	$(sandbox)/with cargo test --locked $(features) --lib --bins --test integration -- --test-threads=6

test-connections: setup ## failing connections to Kafka and PostgreSQL, and working TLS and logins
	$(sandbox)/with cargo test --locked $(features) --bins --test integration -- connections --test-threads=6

# The campaign has its own servers and needs tools that no other test needs. The environment variables have other names
# because SECONDS is a variable of bash. ONLY is a part of the name of a fault kind.
chaos: export GAPLESS_CHAOS_SECONDS = $(SECONDS)
chaos: export GAPLESS_CHAOS_SEED = $(or $(SEED),1)
chaos: export GAPLESS_CHAOS_ONLY = $(ONLY)
chaos: setup ## the fault campaign: SECONDS=900 SEED=1 ONLY=kind
	@$(sandbox)/setup --chaos
	$(campaign) chaos::campaign

chaos-sweep: export GAPLESS_CHAOS_SEED = $(or $(SEED),1)
chaos-sweep: setup ## every failpoint with every action at several hits; continues after an interruption
	@$(sandbox)/setup --chaos
	$(campaign) chaos::sweep::sweep

# Speed on this machine, as ratios of measurements of the same session: MESSAGES=400000 ROUNDS=3 GROWTH=10 (millions;
# 0: none) ONLY=work. YARDSTICK=program adds the baseline of another source tree.
bench: release ## speed compared with the COPY baseline: report.json and table.md in target/bench
	cargo build --locked --release --example produce --example bench
	$(if $(EVENTS_PER_MESSAGE),cargo build --locked --release $(features) --target-dir target/with-lists --bins --example produce)
	SANDBOX_DIR=$(CURDIR)/target/bench/sandbox $(sandbox)/with $(bench) $(peers)

bench-peers: peers = --peer debezium
bench-peers: bench ## the same, compared also with Debezium's JDBC sink

lint: setup ## formatting and clippy, warnings are errors
	cargo fmt --all --check
	cargo clippy --locked --all-targets $(features) -- -D warnings
	cargo clippy --locked --lib --no-default-features -- -D warnings

doc: setup ## documentation; a broken link is an error
	RUSTDOCFLAGS='-D warnings --cfg gapless_internals' cargo doc --locked --no-deps --document-private-items

docs: setup ## regenerate docs/configuration.md and docs/cli.md from config/default.toml and the command line
	GAPLESS_WRITE_DOCS=1 cargo test --locked $(features) --bins --test integration -- documents::

check: lint doc deny machete test ## all checks that a change must pass, with four minutes of the campaign
	$(MAKE) chaos SECONDS=240

deny: ## dependencies: licenses, bans, sources
	@command -v cargo-deny >/dev/null || cargo install --locked cargo-deny --version '^0.20'
	cargo deny --locked check bans licenses sources

machete: ## dependencies that nothing uses
	@command -v cargo-machete >/dev/null || cargo install --locked cargo-machete --version '^0.9'
	cargo machete

advisories: ## known vulnerabilities (needs the internet for the advisory database)
	@command -v cargo-deny >/dev/null || cargo install --locked cargo-deny --version '^0.20'
	@if cargo deny fetch db; then cargo deny check advisories; else echo 'advisories: skipped, the database could not be fetched'; fi

# To run only some of them: make mutants ONLY='03 07'.
mutants: setup ## insert twelve faults into a copy of the source, one at a time; tests must catch each
	@$(sandbox)/with tests/mutants/run $(ONLY)

catalogue: setup ## after a new migration: regenerate the schema that the catalogue check expects
	GAPLESS_WRITE_CATALOGUE=1 $(sandbox)/with cargo test --locked $(features) --test integration -- --exact \
		catalogue::the_expected_catalogue_is_the_result_of_the_migrations

fmt: ## format the code
	cargo fmt --all

up: ## start the sandbox: Apache Kafka and PostgreSQL on loopback
	@$(sandbox)/up

down: ## stop the sandbox, keep its data
	@$(sandbox)/down

status: ## show which servers of the sandbox run
	@$(sandbox)/status

clean: ## remove builds and the sandbox's data
	@$(sandbox)/down --delete
	cargo clean
