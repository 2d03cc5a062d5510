#include "scheduling/recording.h"

#include <algorithm>
#include <cstring>
#include <span>

#include "scheduling/decide.h"
#include "scheduling/tell.h"

namespace fairway::scheduling {

namespace {

void Copy(const float* from, size_t n, float* to) { std::memcpy(to, from, n * sizeof(float)); }

// With its memory.
void Cut(std::string& text) {
  if (text.size() > Recording::kMaxText) text = text.substr(0, Recording::kMaxText);
}

}  // namespace

const float* Recording::FindColumn(std::string_view name) const {
  for (size_t id = 0; id < num_columns; ++id) {
    if (ColumnName(id) == name) return column(id);
  }
  return nullptr;
}

namespace {

void NoteRefusing(const fleet::PoolSnapshot& pool, base::Nanos at, Recording& out) {
  out.refusing.clear();
  out.refusing_age.clear();
  if (!pool.anyone_refuses()) return;
  const uint32_t moment = fleet::Millis(at);
  for (uint32_t i = 0; i < pool.cells.size() && out.refusing.size() < Recording::kMaxRefusing; ++i) {
    const bool asked = std::find(out.endpoint.begin(), out.endpoint.end(), i) != out.endpoint.end();
    if (!pool.cells[i]->refusing() || asked) continue;
    const uint32_t page = pool.loads[i]->requests().page;
    out.refusing.push_back(i);
    out.refusing_age.push_back(
        page == 0 ? kNoPage : static_cast<uint32_t>(std::max(fleet::MillisSince(page, moment), 0)));
  }
}

}  // namespace

void Recording::Begin(const std::shared_ptr<const ConfigSet>& by, const Config& of_pool,
                      const fleet::PoolSnapshot& pool, size_t candidates) {
  if (configs != by) configs = by;
  config = &of_pool;
  with_models = !pool.models.empty();
  num_candidates = candidates;
  has_picture = false;
  outcome.kind = OutcomeKind::kNoCandidates;
  outcome.num_choices = outcome.num_further = 0;
}

void Recording::Keep(const Picture& picture, const Context& context, const fleet::PoolSnapshot& pool,
                     uint32_t reads, bool first_round, const Scratch::Impl& s) {
  const size_t n = picture.columns.size();
  has_picture = n <= kMaxCandidates;
  if (!has_picture) return;
  endpoint.assign(picture.columns.endpoint.begin(), picture.columns.endpoint.end());
  own.assign(s.own, s.own + n);
  fresh.assign(s.fresh, s.fresh + n);
  page_age.resize(n);
  PageAges(pool, picture.columns, context.now, page_age.data());
  NoteRefusing(pool, context.now, *this);
  num_columns = config->columns.size();
  values.resize(num_columns * n);
  for (size_t id = 0; id < kLiveColumns.size(); ++id) {
    float* to = values.data() + id * n;
    const bool is_there = id == kTokens.id ? (reads & Bit(kTokens)) != 0 : true;
    is_there ? Copy(picture.columns[Column{static_cast<uint16_t>(id)}], n, to)
             : void(std::fill_n(to, n, 0.0f));
  }
  adapters = picture.columns.adapters;
  num_fresh = picture.fresh;
  silence = picture.silence;
  critical_traffic = context.critical_traffic;
  asks_admitters = first_round;
  now = context.now;

  facts = context.request;
  facts.prompts.tokens = nullptr;  // a shadow is not asked by them: nobody takes what it would put off
  Cut(facts.target_model);
  for (auto& [name, value] : facts.headers) Cut(value);
}

void Recording::KeepMade(const Context& context, const Scratch::Impl& s) {
  random = context.random;
  if (!has_picture) return;
  for (size_t id = kLiveColumns.size(); id < num_columns; ++id)
    Copy(s.table[id], size(), values.data() + id * size());
}

namespace {

class Again {
 public:
  Again(const Recording& recording, const Config& config, const AgainOptions& how, Scratch::Impl& s)
      : recording_(recording), config_(config), how_(how), s_(s), n_(recording.size()) {}

  // The live columns and all that is no column.
  Picture Restore() {
    const size_t more = config_.columns.size() - kLiveColumns.size();
    if (n_ > s_.capacity || more > s_.more_columns) s_.Grow(n_, more);
    std::copy(recording_.own.begin(), recording_.own.end(), s_.own);
    std::copy(recording_.fresh.begin(), recording_.fresh.end(), s_.fresh);
    for (size_t id = 0; id < kLiveColumns.size(); ++id) {
      s_.table[id] = s_.made[id];
      const float* from = Recorded(id);
      from != nullptr ? Copy(from, n_, s_.made[id]) : void(std::fill_n(s_.made[id], n_, 0.0f));
      if (from == nullptr && how_.missing != nullptr && (config_.reads & 1u << id) != 0)
        how_.missing->emplace_back(kLiveColumns[id].name);
    }
    Picture picture{.fresh = recording_.num_fresh, .silence = recording_.silence};
    picture.columns = Columns(recording_.endpoint, s_.table.data());
    picture.columns.adapters = recording_.adapters;
    return picture;
  }

  // What the config's plugins make.
  void Make(const Context& context) {
    if (how_.pool != nullptr) {
      GatherEndpointColumns(config_, {how_.pool, recording_.endpoint}, s_);
    } else {
      for (const Config::AbsentColumn& column : config_.absent_columns)
        std::fill_n(s_.made[column.column.id], n_, column.value);
      for (const Config::EndpointColumn& column : config_.endpoint_columns) MakeOf(column);
    }
    bool all = true;
    for (size_t id = kLiveColumns.size(); id < config_.columns.size(); ++id)
      all &= config_.columns[id].lifetime != Lifetime::kRequest || Usable(id);
    if (!all) RunProducers(config_, context, s_);
    for (size_t id = kLiveColumns.size(); id < config_.columns.size(); ++id) {
      if (how_.pool != nullptr && config_.columns[id].lifetime != Lifetime::kRequest) continue;
      s_.table[id] = s_.made[id];
      if (Usable(id)) Copy(Recorded(id), n_, s_.made[id]);
    }
    SubtractCached(config_, context, s_);
  }

 private:
  // By the config's id. Null: it was not recorded.
  const float* Recorded(size_t id) const {
    if (recording_.config == &config_) return recording_.column(id);
    return recording_.FindColumn(config_.columns[id].name);
  }
  // Whether what was recorded is what this config would see. At the moment of the decision it has plugins of
  // its own to ask; but one that is the same as in the deciding config has learned of the decision meanwhile.
  bool Usable(size_t id) const {
    if (Recorded(id) == nullptr) return false;
    if (how_.pool == nullptr || recording_.config == nullptr || recording_.config == &config_) return true;
    const Config::Instance* theirs = MakerOf(*recording_.config, config_.columns[id].name);
    const Config::Instance* ours = MakerOf(config_, config_.columns[id].name);
    return theirs != nullptr && ours != nullptr && theirs->type == ours->type && theirs->name == ours->name &&
           std::equal(theirs->parameters.begin(), theirs->parameters.end(), ours->parameters.begin(),
                      ours->parameters.end(), [](const ParameterInfo& a, const ParameterInfo& b) {
                        return a.name == b.name && a.value == b.value;
                      });
  }
  static const Config::Instance* MakerOf(const Config& config, std::string_view column) {
    for (const auto& instance : config.plugins) {
      for (const Column made : instance->makes) {
        if (config.columns[made.id].name == column) return instance.get();
      }
    }
    return nullptr;
  }
  void MakeOf(const Config::EndpointColumn& column) {
    const uint16_t id = column.column.id;
    if (Recorded(id) != nullptr) return;
    const auto& endpoints = how_.endpoints;
    for (size_t i = 0; i < n_; ++i)
      s_.made[id][i] = i < endpoints.size() ? column.producer->Value(column.column, endpoints[i]) : 0;
    if (endpoints.empty() && how_.missing != nullptr) how_.missing->push_back(config_.columns[id].name);
  }

  const Recording& recording_;
  const Config& config_;
  const AgainOptions& how_;
  Scratch::Impl& s_;
  const size_t n_;
};

// The profile that chose a further place; "": no more known.
std::string_view ProfileOf(const Recording& recording, const Further& further) {
  const Config& config = *recording.config;
  for (size_t i = 0; config.handler != nullptr && i < config.programs.size(); ++i) {
    if (TellOf(config, i).header == further.header) return config.programs[i].name;
  }
  return {};
}

void Hear(const Recording& recording, const Config& config, Context context,
          const fleet::PoolSnapshot& pool) {
  const Outcome& really = recording.outcome;
  if (really.num_choices == 0 || recording.config == nullptr) return;
  const auto at = std::find(recording.endpoint.begin(), recording.endpoint.end(), really.choices[0]);
  if (at == recording.endpoint.end()) return;
  const auto position = static_cast<uint32_t>(at - recording.endpoint.begin());
  for (const RequestHook* hook : config.hooks) {
    for (const Further& further : std::span(really.further).first(really.num_further))
      hook->PickedBeside(context, ProfileOf(recording, further), further.position,
                         pool.endpoints[further.endpoint]);
    hook->Picked(context, position, pool.endpoints[really.choices[0]]);
  }
}

}  // namespace

Outcome DecideAgain(const Recording& recording, const Config& config, const AgainOptions& how,
                    Scratch& scratch, Explanation* explanation) {
  Outcome outcome;
  if (!recording.has_picture || recording.size() == 0) return outcome;
  Scratch::Impl& s = scratch.impl();
  Again again(recording, config, how, s);
  const Picture picture = again.Restore();
  base::Random random = recording.random;
  const size_t profile = recording.with_models ? config.with_models : config.without_models;
  const Program& program = config.programs[profile];
  const std::span<const uint32_t> own(s.own, recording.size());
  const auto memory = s.MemoryOf(config);
  const Context context{.columns = picture.columns,
                        .request = recording.facts,
                        .random = random,
                        .critical_traffic = recording.critical_traffic,
                        .own = own,
                        .worker = memory,
                        .now = recording.now,
                        .profile = program.name,
                        .pages_alone = how.options.load_source == LoadSource::kPage,
                        .pool = how.pool};
  again.Make(context);
  if (explanation != nullptr)
    TellCandidates(config, program, picture.columns, s, recording.page_age, *explanation);
  const Choice choice = DecideAll(config, program, how.options, picture, context, recording.asks_admitters, s,
                                  outcome, explanation);
  if (config.cached && choice.count > 0) {
    const float cached = s.table[config.cached->id][choice.positions[0]];
    const auto prompt = static_cast<float>(recording.facts.prompt_tokens);
    if (cached > 0) outcome.cached_tokens = static_cast<uint32_t>(std::min(cached, prompt));
  }
  if (how.wait != nullptr) {
    const uint32_t first = choice.positions[0];
    *how.wait = choice.count > 0 ? s.work[first] + s.prefill[first] : 0;
  }
  if (how.hears && how.pool != nullptr) Hear(recording, config, context, *how.pool);
  return outcome;
}

bool SameChoices(const Outcome& a, const Outcome& b) {
  if (a.kind != b.kind || a.num_choices != b.num_choices || a.num_further != b.num_further) return false;
  return std::equal(a.choices.begin(), a.choices.begin() + a.num_choices, b.choices.begin()) &&
         std::equal(a.further.begin(), a.further.begin() + a.num_further, b.further.begin(),
                    [](const Further& x, const Further& y) {
                      return x.header == y.header && x.endpoint == y.endpoint;
                    });
}

float Recording::Wait() const {
  if (!has_picture || outcome.num_choices == 0) return 0;
  const auto found = std::find(endpoint.begin(), endpoint.end(), outcome.choices[0]);
  const float* work = FindColumn("work");
  const float* prefill = FindColumn("prefill");
  if (found == endpoint.end() || work == nullptr || prefill == nullptr) return 0;
  const auto at = found - endpoint.begin();
  const float* cached = FindColumn(kLikelyCachedTokens);
  if (cached == nullptr) cached = FindColumn(kCachedTokens);
  const auto prompt = static_cast<float>(facts.prompt_tokens);
  if (cached == nullptr || prompt == 0) return work[at] + prefill[at];
  return work[at] + prefill[at] * std::max(prompt - cached[at], 0.0f) / prompt;
}

}  // namespace fairway::scheduling
