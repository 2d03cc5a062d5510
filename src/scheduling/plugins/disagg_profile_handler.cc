// disagg-profile-handler: a request's prompt may be computed by another server than its answer, and its
// images by a third. Up to three profiles decide: `profiles.decode`, `.prefill`, `.encode` (these names by
// default). The server of the decode profile answers; the headers x-prefiller-host-port and
// x-encoder-hosts-ports tell its side-car of the others.
//
// `stageOrder` decode-first (default): decode, then what `deciders.prefill` and `deciders.encode` want;
// without a decider that stage never runs. prefill-first: prefill, encode as its decider wants, decode. A
// stage that finds no server is left out: the decode server then does it itself. Only without a decode server
// there is no answer. Source: the reference's handler of this name (llm-d router); pd-profile-handler is its
// older name for two stages, disagg-headers-handler and prefill-header-handler are two names of an older
// plugin that set the headers for `prefillProfile` and `encodeProfile`.
#include <array>
#include <string>

#include "base/strings.h"
#include "scheduling/plugin.h"

namespace fairway::scheduling {
namespace {

enum Stage { kDecodeStage, kPrefillStage, kEncodeStage, kStages };
constexpr std::array<std::string_view, kStages> kNames{"decode", "prefill", "encode"};

ToldIn Told(size_t profile, std::optional<size_t> prefill, std::optional<size_t> encode) noexcept {
  if (profile == prefill) return {kPrefillHeader};
  if (profile == encode) return {kEncodeHeader, true};
  return {};
}

class DisaggProfileHandler final : public Plugin, public ProfileHandler {
 public:
  struct Setup {
    std::array<std::string, kStages> profiles;
    std::array<std::string, kStages> deciders;  // names of plugins; "": none
    // Where the config says them, for errors.
    std::array<std::string, kStages> profile_fields;
    std::array<std::string, kStages> decider_fields;
    bool prefill_first = false;
  };

  DisaggProfileHandler(Build& build, const Setup& setup) : prefill_first_(setup.prefill_first) {
    for (size_t stage = 0; stage < kStages; ++stage) {
      profiles_[stage] = build.Profile(setup.profiles[stage]);
      const std::string& decider = setup.deciders[stage];
      if (!decider.empty())
        deciders_[stage] = build.Refers<Decider>(setup.decider_fields[stage], decider, "decider");
      const bool needed =
          stage == kDecodeStage || !decider.empty() || (stage == kPrefillStage && prefill_first_);
      if (needed && !profiles_[stage])
        build.Error(setup.profile_fields[stage], "there is no profile " + api::Quote(setup.profiles[stage]) +
                                                     ", which " + std::string(kNames[stage]) + " needs");
    }
    if (prefill_first_ && deciders_[kPrefillStage] != nullptr)
      build.Error(setup.decider_fields[kPrefillStage],
                  "a prefill decider looks at the decode server, which prefill-first has not chosen yet");
  }

  std::optional<size_t> Next(const Context& context,
                             std::span<const ProfileResult> results) const noexcept override {
    if (prefill_first_) {
      if (!results[*profiles_[kPrefillStage]].ran) return profiles_[kPrefillStage];
      if (Wanted(kEncodeStage, context, results, kPrefillStage)) return profiles_[kEncodeStage];
      return results[*profiles_[kDecodeStage]].ran ? std::nullopt : profiles_[kDecodeStage];
    }
    const ProfileResult& decode = results[*profiles_[kDecodeStage]];
    if (!decode.ran) return profiles_[kDecodeStage];
    if (decode.positions.empty()) return std::nullopt;
    if (Wanted(kEncodeStage, context, results, kDecodeStage)) return profiles_[kEncodeStage];
    if (Wanted(kPrefillStage, context, results, kDecodeStage)) return profiles_[kPrefillStage];
    return std::nullopt;
  }
  size_t Primary(std::span<const ProfileResult>) const noexcept override { return *profiles_[kDecodeStage]; }
  ToldIn TellOf(size_t profile) const noexcept override {
    return Told(profile, profiles_[kPrefillStage], profiles_[kEncodeStage]);
  }
  bool has_stages() const noexcept override { return true; }

 private:
  // Not run yet, and its decider wants it for what `other` chose.
  bool Wanted(Stage stage, const Context& context, std::span<const ProfileResult> results,
              Stage other) const noexcept {
    if (deciders_[stage] == nullptr || results[*profiles_[stage]].ran) return false;
    const auto chosen = results[*profiles_[other]].positions;
    return deciders_[stage]->Wants(context, chosen.empty() ? 0 : chosen.front());
  }

  bool prefill_first_;
  std::array<std::optional<size_t>, kStages> profiles_;
  std::array<const Decider*, kStages> deciders_{};
};

// The same headers where the profile handler does not tell: for handlers that know no stages.
class DisaggHeadersHandler final : public Plugin, public ProfileTeller {
 public:
  explicit DisaggHeadersHandler(Build& build)
      : prefill_(build.Profile(build.Text("prefillProfile", kNames[kPrefillStage],
                                          "Name of the profile that chooses the prefill server"))),
        encode_(build.Profile(build.Text("encodeProfile", kNames[kEncodeStage],
                                         "Name of the profile that chooses the encode server"))) {
    if (!prefill_ && !encode_) build.Warn("", "has no effect: there is no profile that it names");
  }
  ToldIn TellOf(size_t profile) const noexcept override { return Told(profile, prefill_, encode_); }

 private:
  std::optional<size_t> prefill_, encode_;
};

// "decode-first", "decode_first", "Decode" are one.
bool PrefillFirst(Build& build) {
  std::string order =
      base::ToLower(build.Text("stageOrder", "decode-first", "decode-first or prefill-first"));
  std::erase_if(order, [](char c) { return c == '-' || c == '_'; });
  if (order == "prefill" || order == "prefillfirst") return true;
  if (!order.empty() && order != "decode" && order != "decodefirst")
    build.Error("stageOrder", "want decode-first or prefill-first");
  return false;
}

// The nested form, or the older flat one: `flat` are its names.
void ReadNames(Build& build, std::string_view group, const std::array<std::string_view, kStages>& flat,
               std::string_view help, std::array<std::string, kStages>& out,
               std::array<std::string, kStages>& fields) {
  const api::Node node = build.Object(group, help);
  api::ObjectReader reader(node);
  for (size_t stage = 0; stage < kStages; ++stage) {
    fields[stage] = std::string(group) + "." + std::string(kNames[stage]);
    if (const auto text = reader.Get(kNames[stage]).Text()) out[stage] = *text;
    if (flat[stage].empty()) continue;
    const std::string old = build.Text(flat[stage], "", "Old form of " + fields[stage]);
    if (old.empty()) continue;
    if (node.present()) build.Error(flat[stage], "cannot stand beside " + std::string(group));
    out[stage] = old;
    fields[stage] = flat[stage];
  }
  reader.Finish();
}

}  // namespace

std::unique_ptr<Plugin> MakeDisaggProfileHandler(Build& build) {
  DisaggProfileHandler::Setup setup;
  for (size_t stage = 0; stage < kStages; ++stage) setup.profiles[stage] = kNames[stage];
  setup.prefill_first = PrefillFirst(build);
  ReadNames(build, "profiles", {"decodeProfile", "prefillProfile", "encodeProfile"},
            "{decode, prefill, encode}: names of profiles, by default the same", setup.profiles,
            setup.profile_fields);
  ReadNames(build, "deciders", {"", "prefillDeciderPluginName", "encodeDeciderPluginName"},
            "{prefill, encode}: deciders, by name", setup.deciders, setup.decider_fields);
  const std::string oldest = build.Text("deciderPluginName", "", "Old form of deciders.prefill");
  if (!oldest.empty()) {
    setup.deciders[kPrefillStage] = oldest;
    setup.decider_fields[kPrefillStage] = "deciderPluginName";
  }
  return std::make_unique<DisaggProfileHandler>(build, setup);
}

std::unique_ptr<Plugin> MakeDisaggHeadersHandler(Build& build) {
  return std::make_unique<DisaggHeadersHandler>(build);
}

std::unique_ptr<Plugin> MakePdProfileHandler(Build& build) {
  DisaggProfileHandler::Setup setup;
  setup.profiles = {
      build.Text("decodeProfile", "decode", "Name of the profile that chooses the decode server"),
      build.Text("prefillProfile", "prefill", "Name of the profile that chooses the prefill server"),
      "encode"};
  setup.profile_fields = {"decodeProfile", "prefillProfile", "encodeProfile"};
  setup.decider_fields[kPrefillStage] = "deciderPluginName";
  setup.deciders[kPrefillStage] = build.Text("deciderPluginName", "prefix-based-pd-decider",
                                             "Decider that says whether prefill happens elsewhere");
  if (build.Integer("primaryPort", 0, 0, 65535, "Has no effect; use data-parallel-profile-handler") != 0)
    build.Warn("primaryPort", "has no effect; use data-parallel-profile-handler");
  return std::make_unique<DisaggProfileHandler>(build, setup);
}

}  // namespace fairway::scheduling
