#include "picker/engines_page.h"

#include <memory>
#include <utility>

#include "base/json_writer.h"

namespace fairway::picker {
namespace {

using sources::kv_events::EngineState;

constexpr size_t kEnginesPiece = 64u << 10;

template <typename T>
void MemberOrNull(base::JsonWriter& json, std::string_view name, const std::optional<T>& value) {
  json.Key(name);
  value ? json.Value(*value) : json.Null();
}

void WriteEvents(const EngineState& engine, base::Nanos now, base::JsonWriter& json) {
  const auto& seen = engine.seen;
  json.Key("events").BeginObject();
  json.Member("stored", seen.stored).Member("removed", seen.removed).Member("cleared", seen.cleared);
  json.Member("unknown", seen.unknown).Member("malformed", seen.malformed).EndObject();
  json.Member("unreadableMessages", seen.unreadable).Member("otherTopicMessages", seen.other_topic);
  MemberOrNull(json, "lastSequence", seen.number);
  MemberOrNull(json, "lastAgeMs",
               seen.at != 0 ? std::optional((now - seen.at) / base::kMillisecond) : std::nullopt);
  json.Member("gaps", seen.gaps)
      .Member("replays", seen.replays)
      .Member("replaysGivenUp", seen.replays_given_up);
  json.Member("replaying", engine.replaying).Member("restarts", seen.restarts);
  json.Member("reconnections", seen.reconnections);
  json.Key("tiers").BeginObject();
  for (const auto& tier : seen.tiers)
    json.Key(tier.name)
        .BeginObject()
        .Member("stored", tier.stored)
        .Member("removed", tier.removed)
        .EndObject();
  json.EndObject();
}

void WriteIndex(const std::optional<scheduling::EngineView>& view, base::JsonWriter& json) {
  json.Key("index");
  if (!view) {
    json.Null();
    return;
  }
  json.BeginObject().Member("blocks", view->blocks).Member("blockTokens", view->block_tokens);
  json.Member("engines", view->engines).Member("known", view->known);
  json.Member("askedSinceMatch", view->asked).Member("toldSinceMatch", view->told);
  json.EndObject();
}

void WriteEngine(const EngineState& engine, base::Nanos now,
                 const std::optional<scheduling::EngineView>& view, base::JsonWriter& json) {
  json.BeginObject().Member("pool", engine.pool).Member("endpoint", engine.name);
  json.Member("address", engine.address).Member("standing", NameOf(engine.standing));
  json.Member("reason", engine.reason).Member("connected", engine.connected);
  json.Member("dialled", engine.fed ? "engine" : engine.options.dials ? "picker" : "");
  WriteEvents(engine, now, json);
  json.Member("engineBlockTokens", engine.seen.block_size);
  MemberOrNull(json, "heldTokens", engine.held_tokens);
  MemberOrNull(json, "capacityTokens", engine.capacity_tokens);
  WriteIndex(view, json);
  json.EndObject();
}

struct Engines {
  std::vector<EngineState> list;
  size_t left_out;
  base::Nanos now;
  ViewOf view;
  size_t next = 0;
  bool began = false, ended = false;

  std::string Next() {
    std::string out;
    if (ended) return out;
    if (!std::exchange(began, true)) out = "{\"engines\":[";
    while (next < list.size() && out.size() < kEnginesPiece) {
      if (next > 0) out += ',';
      base::JsonWriter json(out);
      const EngineState& engine = list[next++];
      WriteEngine(engine, now, view(engine), json);
    }
    if (next < list.size()) return out;
    ended = true;
    return out + "],\"leftOut\":" + std::to_string(left_out) + "}\n";
  }
};

}  // namespace

std::function<std::string()> EnginesPage(std::vector<EngineState> engines, size_t left_out, base::Nanos now,
                                         ViewOf view) {
  return [pages = std::make_shared<Engines>(Engines{std::move(engines), left_out, now, std::move(view)})] {
    return pages->Next();
  };
}

}  // namespace fairway::picker
