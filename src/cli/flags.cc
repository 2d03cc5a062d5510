#include "cli/flags.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <string_view>

#include "api/text_rules.h"
#include "base/strings.h"

namespace fairway::cli {
namespace {

std::string DurationProblem(const std::string& text) {
  if (base::ParseDuration(text)) return "";
  return "\"" + text + "\" is not a duration; write it like 50ms, 2s or 1m30s";
}

}  // namespace

void AddDuration(CLI::App& app, const std::string& name, std::string& value, const std::string& help) {
  app.add_option(name, value, help)->capture_default_str()->check(DurationProblem);
}

base::Nanos Duration(const std::string& text) { return base::ParseDuration(text).value_or(0); }

namespace {

CLI::Validator Rule(api::TextRule rule) {
  return {[rule](const std::string& text) {
            const std::string wanted = rule(text);
            return text.empty() || wanted.empty() ? "" : wanted + ", not \"" + text + "\"";
          },
          ""};
}

// Named as the reference's.
void AddPageFlags(CLI::App& app, CommonFlags& f) {
  app.add_option("--model-server-metrics-path", f.page_path,
                 "Path of the metrics page of all endpoints that do not say their own; else their engine's, "
                 "which is /metrics for most")
      ->check(Rule(api::CheckMetricsPath));
  app.add_option("--model-server-metrics-scheme", f.page_scheme, "http (the default) or https for them")
      ->check(Rule(api::CheckMetricsScheme));
  app.add_option("--model-server-metrics-port", f.page_port, "Their port; 0 is the endpoint's own");
  app.add_option("--model-server-metrics-ca-file", f.page_ca_file,
                 "PEM file of who signs the certificates of https pages");
  app.add_option("--model-server-metrics-server-name", f.page_server_name,
                 "The name that these certificates must be for; else the endpoint's address");
  app.add_flag_function(
      "--model-server-metrics-https-insecure-skip-verify",
      [&f](int64_t count) { f.page_unverified = count > 0; },
      "Take any certificate (default true, as in the reference, unless a CA file is given; =false without "
      "one: "
      "the system's authorities)");
}

}  // namespace

void AddCommonFlags(CLI::App& app, CommonFlags& f, const std::string& interval_flag) {
  app.add_option("-f,--file", f.files,
                 "Manifest files or folders (YAML or JSON), or - for standard input; watched while running");
  app.add_flag("--explain", f.explain,
               "Print each decision to standard output: candidates, filters, scores, the choice");
  app.add_option(
         "--debug-decisions", f.debug_decisions,
         "Keep the last so many decisions for /debug/decisions on the admin port, such as 256; 0 keeps none")
      ->check(CLI::Range(0, 10'000))
      ->capture_default_str();
  app.add_option(
      "--record", f.record,
      "Write each decision to this file, for `fairway replay --from-decisions`; once it is full it "
      "becomes FILE.1");
  app.add_option("--record-max-bytes", f.record_max_bytes, "Size of each of the two, such as 64Mi")
      ->check([](const std::string& text) {
        const auto bytes = base::ParseQuantity(text);
        return bytes && *bytes >= (1u << 20) && *bytes <= (uint64_t{1} << 40) ? "" : "want 1Mi to 1Ti";
      })
      ->capture_default_str();
  app.add_option("--metrics-max-bytes", f.metrics_max_bytes,
                 "Bytes that the metrics page may have; names that clients make up get a part of them")
      ->check(CLI::Range(100'000, 1'000'000'000))
      ->capture_default_str();
  app.add_option("--log-format", f.log_format, "text or json")
      ->check(CLI::IsMember({"text", "json"}))
      ->capture_default_str();
  app.add_option("--log-level", f.log_level, "debug, info, warn, error or off")
      ->check(CLI::IsMember({"debug", "info", "warn", "error", "off"}))
      ->capture_default_str();
  app.add_option("--workers", f.workers, "Worker threads; 0 is one per core")->capture_default_str();
  app.add_option("--seed", f.seed, "Seed of every random choice; 0 takes one from the system")
      ->capture_default_str();
  app.add_option(
         interval_flag, f.scrape_interval,
         "How often each endpoint's metrics page is read, such as 50ms; auto: as often as placement needs "
         "(400ms, and a third as often where nothing happens)")
      ->capture_default_str()
      ->check([](const std::string& text) { return text == "auto" ? "" : DurationProblem(text); });
  AddDuration(app, "--scrape-timeout", f.scrape_timeout, "The longest that one metrics page may take");
  AddPageFlags(app, f);

  app.add_option("--config-file", f.config.file,
                 "EndpointPickerConfig (llm-d.ai/v1, v1alpha1) that decides instead of the built-in "
                 "profiles; watched while running");
  app.add_option("--config-text", f.config.text, "The same, as text");
  app.add_option(
      "--config-dir", f.config.directory,
      "Folder with an EndpointPickerConfig NAMESPACE.POOL.yaml for each pool that shall have one of its "
      "own; watched while running");
  app.add_option("--shadow-config-file", f.config.shadow_file,
                 "EndpointPickerConfig that decides too, without any effect: how often and how it differs is "
                 "counted (fairway_shadow_*); watched while running");
  app.add_flag("--allow-experimental-plugins", f.config.allow_experimental,
               "Allow its plugins that the reference calls Alpha");
  app.add_option("--feature-gates", f.config.feature_gates, "As in its featureGates: name or name=false")
      ->delimiter(',');
  app.add_option("--max-endpoints", f.choices,
                 "First choice and fallbacks that the gateway gets in the metadata")
      ->check(CLI::Range(1, 8))
      ->capture_default_str();
  app.add_option("--load-source", f.load_source,
                 "What load decisions see: the ledger of own requests and pages, or pages alone (to compare)")
      ->check(CLI::IsMember({"ledger", "page"}))
      ->capture_default_str();
  app.add_option("--lora-exploration", f.lora_exploration,
                 "Share of picks that load an adapter on a further endpoint")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  app.add_option("--critical-queue-limit", f.critical_queue_limit,
                 "Critical requests prefer endpoints with a shorter queue")
      ->check(CLI::Range(0.0, 1e9))
      ->capture_default_str();
  app.add_option("--sheddable-queue-limit", f.sheddable_queue_limit,
                 "What may be shed needs an endpoint with a shorter queue")
      ->check(CLI::Range(0.0, 1e9))
      ->capture_default_str();
  app.add_option("--sheddable-kv-limit", f.sheddable_kv_limit, "... and with less of its KV cache in use")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  app.add_option("--sheddable-work-limit", f.sheddable_work_limit,
                 "... and less work ahead, in ms, where as many wait by the ledger")
      ->check(CLI::Range(0.0, 1e9))
      ->capture_default_str();
}

base::LogFormat Format(const CommonFlags& flags) {
  return flags.log_format == "json" ? base::LogFormat::kJson : base::LogFormat::kText;
}

base::LogLevel Level(const CommonFlags& flags) {
  if (flags.log_level == "debug") return base::LogLevel::kDebug;
  if (flags.log_level == "warn") return base::LogLevel::kWarn;
  if (flags.log_level == "error") return base::LogLevel::kError;
  if (flags.log_level == "off") return base::LogLevel::kOff;
  return base::LogLevel::kInfo;
}

PickerOptions MakePickerOptions(const CommonFlags& f, Console& console) {
  PickerOptions options;
  options.files = f.files;
  options.workers = f.workers;
  options.seed = f.seed;
  options.debug_decisions = f.debug_decisions;
  options.record_file = f.record;
  options.record_max_bytes = base::ParseQuantity(f.record_max_bytes).value_or(64u << 20);
  options.metrics_max_bytes = f.metrics_max_bytes;
  // The reference clamps at 50 ms; shorter is possible here.
  if (f.scrape_interval == "auto") {
    options.scrape.SetInterval(std::nullopt);
  } else {
    options.scrape.SetInterval(std::max(Duration(f.scrape_interval), base::kMillisecond));
  }
  options.scrape.timeout = std::max(Duration(f.scrape_timeout), base::kMillisecond);
  options.scrape.page = {.scheme = f.page_scheme, .path = f.page_path, .port = f.page_port};
  options.scrape.ca_file = f.page_ca_file;
  options.scrape.server_name = f.page_server_name;
  options.scrape.verification = !f.page_unverified   ? sources::scrape::Verification::kWithCaFile
                                : *f.page_unverified ? sources::scrape::Verification::kOff
                                                     : sources::scrape::Verification::kOn;
  auto& scheduling = options.router.scheduling;
  scheduling.max_choices = f.choices;
  scheduling.load_source =
      f.load_source == "page" ? scheduling::LoadSource::kPage : scheduling::LoadSource::kLedger;
  scheduling.lora_exploration = f.lora_exploration;
  scheduling.critical_queue_limit = f.critical_queue_limit;
  scheduling.sheddable_queue_limit = f.sheddable_queue_limit;
  scheduling.sheddable_kv_limit = f.sheddable_kv_limit;
  scheduling.sheddable_work_limit = f.sheddable_work_limit;
  // A page may come late by a few intervals and still be fresh.
  scheduling.fresh_for = std::max(base::kSecond, 4 * options.scrape.interval);
  options.config = f.config;
  options.lost_lines = console.lost();
  options.print = [&console](std::string_view text) { console.PrintError(text); };
  // Explanations go to standard output, whole, so that they can be piped while problems stay on standard
  // error.
  if (f.explain) options.router.explain = [&console](std::string_view text) { console.Print(text); };
  return options;
}

}  // namespace fairway::cli
