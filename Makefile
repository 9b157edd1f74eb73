# Everything one does with this repository, by name. `make` alone prints the list.

SHELL := /bin/bash
.DEFAULT_GOAL := help
# One step after the other, whatever -j says: the steps share cargo's lock and the sandbox.
.NOTPARALLEL:
.PHONY: help setup demo build release test test-connections chaos chaos-sweep bench bench-peers lint check fmt doc docs deny machete advisories mutants catalogue up down status clean

sandbox := deploy/sandbox
features := --features failpoints
# A broker as Kafka's documentation runs one ("Java Version"), with its memory touched before it is needed. Its young
# collections aim at 20 ms: 8 to 15 ms every ten seconds at 1,000 messages a second; without that aim they were rarer and took
# 20 to 85 ms. What outlives two collections lives on, as in a broker that has been up for days; by default a young one
# copies it fifteen times.
bench: export SANDBOX_KAFKA_JVM = -Xms6g -Xmx6g -XX:MetaspaceSize=96m -XX:+UseG1GC -XX:MaxGCPauseMillis=20 \
	-XX:InitiatingHeapOccupancyPercent=35 -XX:G1HeapRegionSize=16M -XX:MinMetaspaceFreeRatio=50 \
	-XX:MaxMetaspaceFreeRatio=80 -XX:+ExplicitGCInvokesConcurrent -XX:+AlwaysPreTouch -XX:MaxTenuringThreshold=1
# What tests make it look for every second, it looks for as rarely as Kafka does by default.
define seldom
log.retention.check.interval.ms=300000
log.cleaner.backoff.ms=15000
transaction.abort.timed.out.transaction.cleanup.interval.ms=10000
broker.heartbeat.interval.ms=2000
broker.session.timeout.ms=9000
endef
bench: export SANDBOX_KAFKA_PROPERTIES = $(seldom)
bench = sh -c 'exec target/release/examples/bench run --brokers "$$GAPLESS_TEST_KAFKA" --database-url "$$GAPLESS_TEST_DATABASE_URL" \
	$(if $(MESSAGES),--messages $(MESSAGES)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(GROWTH),--growth $(GROWTH)) \
	$(if $(ONLY),--only $(ONLY)) $(if $(YARDSTICK),--yardstick $(YARDSTICK)) "$$@"' bench
campaign := cargo test --locked $(features) --bins --test integration -- --ignored --nocapture --exact

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1\t\2/p' Makefile | expand -t 12

setup: ## install what building and testing need (as root; else: say how)
	@$(sandbox)/setup

demo: setup ## real events through real servers, and the tables that come out
	@$(sandbox)/demo

build: setup ## debug build
	cargo build --locked

release: setup ## release build: target/release/gapless
	cargo build --locked --release

# The integration tests come last, so that the last lines are the summary of the tests that matter most. They mostly
# wait for servers, so more of them run at once than there are cores.
test: setup ## all tests, the integration tests on real servers
	cargo test --locked $(features) --doc
	$(sandbox)/with cargo test --locked $(features) --lib --bins --test integration -- --test-threads=6

test-connections: setup ## every way not to reach Kafka and PostgreSQL, and TLS and logins that work
	$(sandbox)/with cargo test --locked $(features) --bins --test integration -- connections --test-threads=6

# The campaign has servers of its own, and tools that no other test needs. SECONDS is a variable of bash's, hence the
# names; ONLY is a part of a kind's name.
chaos: export GAPLESS_CHAOS_SECONDS = $(SECONDS)
chaos: export GAPLESS_CHAOS_SEED = $(or $(SEED),1)
chaos: export GAPLESS_CHAOS_ONLY = $(ONLY)
chaos: setup ## the fault campaign: SECONDS=900 SEED=1 ONLY=kind
	@$(sandbox)/setup --chaos
	$(campaign) chaos::campaign

chaos-sweep: export GAPLESS_CHAOS_SEED = $(or $(SEED),1)
chaos-sweep: setup ## every seam with every action at several hits; goes on where it was interrupted
	@$(sandbox)/setup --chaos
	$(campaign) chaos::sweep::sweep

# Speed on this machine, as ratios of what ran in the same session: MESSAGES=400000 ROUNDS=3 GROWTH=10 (millions; 0: none)
# ONLY=work. YARDSTICK=program adds a baseline of another tree.
bench: release ## speed beside the COPY baseline: report.json and table.md in target/bench
	cargo build --locked --release --example produce --example bench
	SANDBOX_DIR=$(CURDIR)/target/bench/sandbox $(sandbox)/with $(bench) $(peers)

bench-peers: peers = --peer debezium
bench-peers: bench ## the same beside Debezium's JDBC sink

lint: setup ## formatting and clippy, warnings are errors
	cargo fmt --all --check
	cargo clippy --locked --all-targets $(features) -- -D warnings
	cargo clippy --locked --lib --no-default-features -- -D warnings

doc: setup ## documentation; a broken link is an error
	RUSTDOCFLAGS='-D warnings --cfg gapless_internals' cargo doc --locked --no-deps --document-private-items

docs: setup ## write docs/configuration.md and docs/cli.md anew, from config/default.toml and the command line
	GAPLESS_WRITE_DOCS=1 cargo test --locked $(features) --bins --test integration -- documents::

check: lint doc deny machete test ## all that must hold before a change lands, four minutes of the campaign included
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

# One or some of them: make mutants ONLY='03 07'.
mutants: setup ## put twelve faults into a copy of the source, one at a time: tests must catch each
	@$(sandbox)/with tests/mutants/run $(ONLY)

catalogue: setup ## after a new migration: write anew what the catalogue check expects
	GAPLESS_WRITE_CATALOGUE=1 $(sandbox)/with cargo test --locked $(features) --test integration -- --exact \
		catalogue::the_expected_catalogue_is_the_result_of_the_migrations

fmt: ## format the code
	cargo fmt --all

up: ## start the sandbox: Apache Kafka and PostgreSQL on loopback
	@$(sandbox)/up

down: ## stop the sandbox, keep its data
	@$(sandbox)/down

status: ## what of the sandbox runs
	@$(sandbox)/status

clean: ## remove builds and the sandbox's data
	@$(sandbox)/down --delete
	cargo clean
