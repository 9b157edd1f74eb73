# The daemon in a small image: docker build -t gapless .
# Settings come by environment (GAPLESS__SECTION__KEY), a mounted file (--config) or flags. Probes ask /livez and /readyz
# on port 9464. Stop it with SIGTERM; it needs 10 s at most.

FROM rust:1.95-bookworm AS build
# librdkafka is built from source with cmake; libssl-dev, zlib and the compilers are in the image.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends cmake libcurl4-openssl-dev libssl-dev pkg-config zlib1g-dev \
    && rm -rf /var/lib/apt/lists/*
# On arm64 a host may have pages of 64 kB: jemalloc that was built for them also runs on one with smaller pages.
ENV AARCH64_UNKNOWN_LINUX_GNU_JEMALLOC_SYS_WITH_LG_PAGE=16
WORKDIR /build

# The dependencies, librdkafka among them, are a layer of their own, built again only when the lock file changes.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src \
    && echo 'fn main() {}' >src/main.rs \
    && touch src/lib.rs \
    && cargo build --locked --release \
    && rm -r src

COPY build.rs build.rs
COPY src src
COPY migrations migrations
COPY config config
# The documentation of the crate.
COPY docs/architecture.md docs/architecture.md
# Newer than what was built of the empty sources, whatever the times of the checkout.
RUN find src -name '*.rs' -exec touch {} + \
    && cargo build --locked --release --bin gapless \
    && strip --strip-debug target/release/gapless

FROM debian:bookworm-slim
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libssl3 zlib1g \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /build/target/release/gapless /usr/local/bin/gapless
# A number, so that runAsNonRoot can be checked without a look into /etc/passwd.
USER 10001:10001
# Within a container nobody reaches the default, 127.0.0.1. Only probes, health and metrics are served there, without
# secrets or contents of messages; -e GAPLESS__SERVER__BIND=… chooses another address.
ENV GAPLESS__SERVER__BIND=0.0.0.0:9464
EXPOSE 9464
ENTRYPOINT ["/usr/local/bin/gapless"]
