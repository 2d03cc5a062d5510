#include "picker/config_source.h"

#include <utility>

#include "api/endpoint_picker_config.h"

namespace fairway::picker {

namespace {

constexpr std::string_view kTextName = "--config-text";

}  // namespace

std::shared_ptr<const scheduling::Config> LoadConfig(const ConfigOptions& options,
                                                     std::vector<api::Problem>& problems,
                                                     scheduling::States* states, uint64_t* fingerprint) {
  const api::EndpointPickerConfigOptions reading{.feature_gates = options.feature_gates};
  const bool from_file = !options.file.empty();
  const std::string name = from_file ? options.file : std::string(kTextName);
  auto document = from_file ? api::LoadEndpointPickerConfig(options.file, reading)
                            : api::ParseEndpointPickerConfig(options.text, name, reading);
  if (from_file && !options.text.empty()) {
    problems.push_back(
        {api::Severity::kError, {options.file, 0}, "", "", "give --config-file or --config-text, not both"});
    return nullptr;
  }
  if (fingerprint != nullptr) *fingerprint = document.fingerprint;
  problems.insert(problems.end(), document.problems.begin(), document.problems.end());
  if (!document.ok()) return nullptr;
  api::ProblemList list(name, problems);
  return scheduling::Compile(
      scheduling::FromDocument(document.config), list,
      {.more_types = {}, .states = states, .allow_experimental = options.allow_experimental});
}

void ConfigSource::Watch(net::Loop& loop, const base::Log& log, base::Registry& registry, Changed changed) {
  log_ = log;
  changed_ = std::move(changed);
  auto& reloads = registry.AddCounter({.name = "fairway_scheduler_config_reloads_total",
                                       .help = "Changes of the file of --config-file, by outcome.",
                                       .labels = {"outcome"}});
  applied_ = &reloads.With({"applied"});
  refused_ = &reloads.With({"refused"});
  if (options_.file.empty()) return;
  // On the source's own thread: the file system may be slow. What it finds is read again when it is compiled.
  auto loader = [options = options_](const std::vector<std::string>&, const api::LoadOptions&) {
    const auto document = api::LoadEndpointPickerConfig(
        options.file, {.only_files = true, .feature_gates = options.feature_gates});
    return api::LoadResult{
        .manifests = {}, .problems = document.problems, .fingerprint = document.fingerprint};
  };
  files_ = std::make_unique<sources::FileSource>(
      loop, std::vector<std::string>{options_.file},
      [this](const api::LoadResult& loaded) { OnChange(loaded); }, 50 * base::kMillisecond, fingerprint_,
      api::LoadOptions{}, std::move(loader));
}

void ConfigSource::OnChange(const api::LoadResult& loaded) {
  std::vector<api::Problem> problems = loaded.problems;
  std::shared_ptr<const scheduling::Config> config;
  if (loaded.ok()) {
    problems.clear();
    config = Load(problems);
  }
  for (const api::Problem& problem : problems) {
    if (problem.severity == api::Severity::kError) {
      log_.Error(api::ToString(problem));
    } else {
      log_.Warn(api::ToString(problem));
    }
  }
  if (config == nullptr) {
    refused_->Add();
    log_.Error("the changed scheduler config has errors: the one before decides on");
    return;
  }
  applied_->Add();
  log_.Info("scheduler config changed", {{"profiles", std::to_string(config->programs.size())},
                                         {"plugins", std::to_string(config->plugins.size())}});
  changed_(std::move(config));
  states_.FreeUnused();
}

void ConfigSource::LookAgain() {
  if (files_ != nullptr) files_->LookAgain();
}

}  // namespace fairway::picker
