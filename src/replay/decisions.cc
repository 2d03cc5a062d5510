#include "replay/decisions.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <system_error>
#include <utility>
#include <vector>

#include "api/decode.h"
#include "api/value.h"
#include "base/strings.h"
#include "routing/decision_json.h"
#include "scheduling/recording.h"

namespace fairway::replay {
namespace {

constexpr size_t kMaxLine = 16u << 20;

class Run {
 public:
  Run(const std::string& path, const DecisionReplayOptions& how, std::vector<api::Problem>& problems)
      : problems_(path, problems), how_(how) {}

  void Line(std::string_view text, int number) {
    const api::ParsedText parsed = api::ParseJson(text);
    if (!parsed.problems.empty() || parsed.documents.size() != 1)
      return Broken(number,
                    parsed.problems.empty() ? "want one JSON object a line" : parsed.problems[0].message);
    const api::ObjectContext context{.problems = &problems_, .name = "", .allow_unknown = true};
    const api::Node node(&context, parsed.documents[0].get(), "", number);
    if (node.Child("fairway").present()) return Header(node);
    if (!options_) return Broken(number, "the first line does not say by which options was decided");
    if (!node.Child("picture").present()) {
      ++result.left_out;
      return;
    }
    const auto read = routing::ReadState(node);
    if (read == nullptr || !read->has_choice) return Broken(number, "no decision can be read from it");
    if (!read->decision.built_in && how_.config == nullptr) {
      if (!std::exchange(told_of_configs_, true))
        problems_.Add(api::Severity::kError, number, context.name, "config",
                      "a config of its own decided this: give it, too");
      ++result.left_out;
      return;
    }
    Decide(*read, number);
  }

  DecisionReplay result;

 private:
  void Broken(int number, std::string what) {
    ++result.broken;
    problems_.Add(api::Severity::kError, number, "", "", std::move(what));
  }

  void Header(const api::Node& node) {
    scheduling::SchedulerOptions& options = options_.emplace();
    routing::ReadOptions(node.Child("options"), options);
    if (how_.change) how_.change(options);
    config_ = how_.config;
    if (config_ == nullptr && scheduling::CheckOptions(options))
      config_ = scheduling::CompileBuiltin(options);
    if (config_ == nullptr) options_.reset();
  }

  void Decide(const routing::ReadDecision& read, int number) {
    const routing::Decision& d = read.decision;
    const scheduling::Outcome now = scheduling::DecideAgain(
        d.seen, *config_, {.options = *options_, .endpoints = read.endpoints}, scratch_);
    if (scheduling::SameChoices(now, d.seen.outcome)) {
      ++result.same;
      return;
    }
    ++result.differing;
    if (how_.tell) how_.tell(Difference(read, number));
  }

  static std::string Choices(const routing::Decision& d, const scheduling::Outcome& outcome) {
    if (outcome.num_choices == 0) return "shed";
    std::string out;
    for (uint32_t i = 0; i < outcome.num_choices; ++i)
      out += (i > 0 ? ", " : "") + d.Name(outcome.choices[i]);
    for (uint32_t i = 0; i < outcome.num_further; ++i)
      out +=
          " + " + d.Name(outcome.further[i].endpoint) + " (" + std::string(outcome.further[i].header) + ")";
    return out;
  }

  std::string Difference(const routing::ReadDecision& read, int number) {
    const routing::Decision& d = read.decision;
    scheduling::Explanation explanation;
    const scheduling::Outcome now = scheduling::DecideAgain(
        d.seen, *config_, {.options = *options_, .endpoints = read.endpoints}, scratch_, &explanation);
    std::string out = problems_.file() + ":" + std::to_string(number) + ": request " +
                      (d.request_id.empty() ? "-" : base::CleanText(d.request_id, 120)) + ": was " +
                      Choices(d, d.seen.outcome) + ", now " + Choices(d, now);
    if (explanation.primary < explanation.profiles.size())
      out += " (" + routing::WhyOf({d, explanation}, explanation.profiles[explanation.primary]) + ")";
    return out;
  }

  api::ProblemList problems_;
  const DecisionReplayOptions& how_;
  std::optional<scheduling::SchedulerOptions> options_;  // of the last header
  std::shared_ptr<const scheduling::Config> config_;
  scheduling::Scratch scratch_;
  bool told_of_configs_ = false;
};

}  // namespace

DecisionReplay ReplayDecisions(const std::string& path, const DecisionReplayOptions& how,
                               std::vector<api::Problem>& problems) {
  Run run(path, how, problems);
  const auto fail = [&](int line, std::string what) {
    problems.push_back({api::Severity::kError, {path, line}, "", "", std::move(what)});
    return run.result;
  };
  std::error_code error;
  if (std::filesystem::exists(path, error) && !std::filesystem::is_regular_file(path, error))
    return fail(0, "is no file");  // which may have no end, or no beginning
  std::ifstream file(path);
  if (!file) return fail(0, std::string("cannot be opened: ") + std::strerror(errno));
  std::vector<char> line(kMaxLine);
  for (int number = 1; file.getline(line.data(), static_cast<std::streamsize>(line.size())); ++number)
    run.Line(std::string_view(line.data(), static_cast<size_t>(file.gcount()) - (file.eof() ? 0 : 1)),
             number);
  if (!file.eof()) return fail(0, "has a line of more than " + std::to_string(kMaxLine >> 20) + " MiB");
  return run.result;
}

}  // namespace fairway::replay
