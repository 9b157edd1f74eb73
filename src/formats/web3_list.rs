//! For tests only: a list of web3 events in one message, so that messages with several events can be tested with real
//! servers. Compiled with the cargo feature `failpoints`, which no release has.

use serde_json::value::RawValue;

use super::{json, web3};
use crate::model::event::{Decoded, IdentityRecipe, Rejection};

/// Decodes a list of events, or one event as `web3` does.
pub(crate) fn decode<'a>(text: &'a str, recipe: &IdentityRecipe) -> Result<Decoded<'a>, Rejection> {
    if !text.trim_start().starts_with('[') {
        return web3::decode(text, recipe);
    }
    let items: Vec<&RawValue> = serde_json::from_str(text).map_err(|error| json::rejection(text, &error))?;
    let mut events = Vec::with_capacity(items.len());
    for (number, item) in items.iter().enumerate() {
        let in_list = |r: Rejection| Rejection::new(r.reason, format!("event {number}: {}", r.detail));
        if let Decoded::Events(event) = web3::decode(item.get(), recipe).map_err(in_list)? {
            events.extend(event);
        }
    }
    Ok(if events.is_empty() { Decoded::Nothing } else { Decoded::Events(events) })
}
