// `fairway explain`: a decision asked again without a picker, or one that was never made.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "api/decode.h"
#include "api/value.h"
#include "cli/commands.h"
#include "cli/config_file.h"
#include "cli/console.h"
#include "cli/exit_codes.h"
#include "payload/request.h"
#include "replay/fields.h"
#include "replay/picker.h"
#include "replay/production.h"
#include "routing/decision_html.h"
#include "routing/decision_json.h"
#include "scheduling/recording.h"

namespace fairway::cli {
namespace {

struct ExplainFlags {
  std::string fleet;
  std::string request;
  std::string request_id;
  std::string path = "/v1/completions";
  std::string policy;
  std::string config;
  std::string format = "text";
};

constexpr size_t kMaxState = 64u << 20;

// What a state file has: a picture, a decision, a page of decisions, a record.
class State {
 public:
  State(const std::string& path, const std::string& request_id, std::vector<api::Problem>& problems)
      : problems_(path, problems), wanted_(request_id) {
    const auto text = replay::ReadFile(path, kMaxState, problems);
    if (!text) return;
    parsed_ = api::ParseText(*text, path);
    for (const api::SyntaxProblem& problem : parsed_.problems)
      problems_.Add(api::Severity::kError, problem.line, "", "", problem.message);
    for (const api::ValuePtr& document : parsed_.documents) {
      const api::Node node(&context_, document.get(), "", document->line);
      if (node.Child("fairway").present()) {
        routing::ReadOptions(node.Child("options"), options);
      } else if (const api::Node list = node.Child("decisions"); list.present()) {
        for (const api::Node& item : list.Items(0, 100'000)) Take(item);
      } else {
        Take(node);
      }
    }
    if (read == nullptr && !api::HasErrors(problems))
      problems_.Add(api::Severity::kError, 0, "", "",
                    request_id.empty() ? "there is no decision with a picture"
                                       : "there is no decision of request " + api::Quote(request_id));
  }

  std::unique_ptr<routing::ReadDecision> read;  // the first of those wanted; null: none
  scheduling::SchedulerOptions options;

 private:
  void Take(const api::Node& node) {
    if (read != nullptr) return;
    if (!wanted_.empty() && (!node.Is(api::Value::Kind::kMap) || node.Child("requestId").Text() != wanted_))
      return;
    const api::Node picture = node.Child("picture");
    const api::Node said = (picture.present() ? picture : node).Child("options");
    if (said.present()) routing::ReadOptions(said, options);
    read = routing::ReadState(node);
  }

  api::ProblemList problems_;
  const std::string wanted_;
  const api::ObjectContext context_{.problems = &problems_, .name = "state", .allow_unknown = true};
  api::ParsedText parsed_;
};

// The recorded request becomes the one of this body. "": it did; else what is wrong with it.
std::string Replace(const std::string& body, const ExplainFlags& flags, routing::Decision& d) {
  payload::RequestScanner scanner(payload::ApiOfPath(flags.path));
  scanner.Feed(body);
  scanner.Finish();
  if (!scanner.ok()) return std::string(scanner.error());
  const payload::RequestFields& fields = scanner.fields();
  auto& facts = d.seen.facts;
  const auto tokens = static_cast<uint32_t>(std::min<uint64_t>((fields.prompt_bytes + 3) / 4, UINT32_MAX));
  const auto prefill = std::find(d.seen.names.begin(), d.seen.names.end(), "prefill");
  if (prefill != d.seen.names.end()) {
    // As long as the rate that was recorded says; without a prompt there was none.
    const size_t n = d.seen.size();
    float* values = d.seen.values.data() + static_cast<size_t>(prefill - d.seen.names.begin()) * n;
    for (size_t i = 0; i < n; ++i) {
      values[i] = facts.prompt_tokens > 0
                      ? values[i] / static_cast<float>(facts.prompt_tokens) * static_cast<float>(tokens)
                      : fleet::kDefaultMsPerToken * static_cast<float>(tokens);
    }
    if (facts.prompt_tokens == 0)
      std::fprintf(
          stderr,
          "fairway explain: the recorded request has no prompt: rates are taken to be %g ms a token\n",
          static_cast<double>(fleet::kDefaultMsPerToken));
  }
  if (fields.has_model && !d.model.empty() && fields.model != d.model && facts.adapter != fleet::kNoAdapter)
    Show(stderr, "fairway explain: what is known of adapters is that of model " + d.model + "\n");
  if (fields.has_model) d.model = d.target_model = facts.target_model = fields.model;
  facts.prompt_tokens = tokens;
  facts.streaming = facts.shows_first_token = fields.stream;
  facts.max_tokens = static_cast<uint32_t>(std::clamp<int64_t>(fields.max_tokens.value_or(0), 0, UINT32_MAX));
  return "";
}

std::string Print(const routing::Told& told, const std::string& format) {
  if (format == "html")
    return routing::HtmlHead("Decision") + routing::ToHtml(told, told.decision.at) + routing::HtmlTail();
  if (format == "text") return routing::ToText(told);
  std::string out;
  base::JsonWriter json(out);
  json.BeginObject();
  routing::WriteReasons(told, json);
  routing::WritePicture(told.decision, json);
  json.EndObject();
  return out + "\n";
}

int Fail(const std::string& what, int code) {
  Show(stderr, "fairway explain: " + what + "\n");
  return code;
}

int RunExplain(const ExplainFlags& flags) {
  std::vector<api::Problem> problems;
  State state(flags.fleet, flags.request_id, problems);
  if (!problems.empty()) Show(stderr, replay::ToText(problems) + "\n");
  if (state.read == nullptr || api::HasErrors(problems)) return kExitInput;
  if (!flags.policy.empty()) {
    const auto policy = replay::Policy::Find(flags.policy);
    if (!policy) return Fail(policy.error().message, kExitUsage);
    replay::SetParameters(*policy, state.options);
    state.read->decision.seen.with_models |= policy->declares_models;
  }
  routing::Decision& d = state.read->decision;
  if (!flags.request.empty()) {
    std::vector<api::Problem> unread;
    const auto body = replay::ReadFile(flags.request, kMaxState, unread);
    if (!body) return Fail(replay::ToText(unread), kExitInput);
    if (const std::string wrong = Replace(*body, flags, d); !wrong.empty())
      return Fail(flags.request + ": " + wrong, kExitInput);
  }
  if (!d.built_in && flags.config.empty())
    std::fprintf(
        stderr,
        "fairway explain: an EndpointPickerConfig decided this one; what follows is what the built-in "
        "profiles make of it: give --config FILE to ask that config\n");
  std::shared_ptr<const scheduling::Config> config;
  if (!flags.config.empty()) {
    std::vector<api::Problem> found;
    config = ReadConfigFile(flags.config, found);
    if (!found.empty()) Show(stderr, replay::ToText(found) + "\n");
    if (config == nullptr) return kExitInput;
  } else {
    config = scheduling::CompileBuiltin(state.options);
  }
  scheduling::Scratch scratch;
  scheduling::Explanation explanation;
  std::vector<std::string> missing;
  d.seen.outcome = scheduling::DecideAgain(
      d.seen, *config, {.options = state.options, .endpoints = state.read->endpoints, .missing = &missing},
      scratch, &explanation);
  for (const std::string& column : missing)
    Show(stderr, "fairway explain: the state has no column " + column + ": it is taken to be 0\n");
  Show(stdout, Print({d, explanation}, flags.format));
  return kExitOk;
}

}  // namespace

void AddExplainCommand(CLI::App& app, std::function<int()>& run) {
  auto* command = app.add_subcommand("explain", "Why a request goes where: a recorded decision asked again");
  auto flags = std::make_shared<ExplainFlags>();
  command
      ->add_option("--fleet", flags->fleet,
                   "What was seen (JSON or YAML): of /debug/decisions, of --record, or a picture alone")
      ->required();
  command->add_option("--request", flags->request, "A request's body; else the recorded request");
  command->add_option("--request-id", flags->request_id, "Which decision of several; else the first");
  command->add_option("--path", flags->path, "What the body was posted to")->capture_default_str();
  command->add_option(
      "--policy", flags->policy,
      "Decide by another profile or parameter, as `fairway replay` has them: fairway-lmetric, "
      "fairway,tolerance=0");
  command->add_option("--config", flags->config,
                      "Decide by this EndpointPickerConfig; else by the built-in profiles");
  command->add_option("--format", flags->format, "text, json or html")
      ->check(CLI::IsMember({"text", "json", "html"}))
      ->capture_default_str();
  command->footer(
      "Exit code: 0 decided, 1 the state or the body has errors, 2 wrong flags.\n\n"
      "Examples:\n"
      "  curl -s 'localhost:9090/debug/decisions?request-id=r-1' > state.json\n"
      "  fairway explain --fleet state.json\n"
      "  fairway explain --fleet state.json --request body.json --policy fairway,tolerance=0 --format html > "
      "why.html");
  command->callback([flags, &run] { run = [flags] { return RunExplain(*flags); }; });
}

}  // namespace fairway::cli
