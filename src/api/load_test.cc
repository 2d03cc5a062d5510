// Files, folders and whatever else a path may lead to.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "api/manifests.h"
#include "api/summary.h"

namespace fairway::api {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class Load : public ::testing::Test {
 protected:
  Load() {
    std::string pattern = (fs::temp_directory_path() / "fairway-load-XXXXXX").string();
    EXPECT_NE(::mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
  }
  ~Load() override { fs::remove_all(folder_); }

  std::string Write(const std::string& name, const std::string& text) const {
    const fs::path path = folder_ / name;
    fs::create_directories(path.parent_path());
    std::ofstream(path) << text;
    return path.string();
  }
  // The problems, with the temporary folder shown as "T".
  std::vector<std::string> Problems(const LoadResult& result) const {
    std::vector<std::string> out;
    for (const Problem& problem : result.problems) {
      std::string text = ToString(problem);
      for (size_t at = 0; (at = text.find(folder_.string(), at)) != std::string::npos;) {
        text.replace(at, folder_.string().size(), "T");
      }
      out.push_back(std::move(text));
    }
    return out;
  }
  static std::string Endpoint(const std::string& name) {
    return "endpoints: [{name: " + name + ", address: " + name + ".example.com, port: '1'}]\n";
  }
  static std::vector<std::string> Names(const LoadResult& result) {
    std::vector<std::string> names;
    for (const auto& endpoint : result.manifests.endpoints) names.push_back(endpoint.name);
    return names;
  }

  fs::path folder_;
};

TEST_F(Load, AFolderByNameAndNotDeeper) {
  Write("b.yaml", Endpoint("b"));
  Write("a.yml", Endpoint("a"));
  Write("c.json", R"({"endpoints": [{"name": "c", "address": "c.example.com", "port": "1"}]})");
  Write("deeper/d.yaml", Endpoint("d"));
  Write(".hidden.yaml", "}");
  Write("b.yaml.swp", "}");
  Write("README.md", "}");
  Write("kustomization.yaml", "resources: [b.yaml]");
  const LoadResult result = LoadManifests({folder_.string()});
  EXPECT_THAT(Problems(result), IsEmpty());
  EXPECT_THAT(Names(result), ElementsAre("a", "b", "c"));
  EXPECT_EQ(result.files.size(), 3u);
}

TEST_F(Load, AFileNamedTwiceIsReadOnce) {
  const std::string file = Write("a.yaml", Endpoint("a"));
  const LoadResult result = LoadManifests({file, folder_.string(), (folder_ / "." / "a.yaml").string()});
  EXPECT_THAT(Problems(result), IsEmpty());
  EXPECT_THAT(Names(result), ElementsAre("a"));
}

TEST_F(Load, ProblemsOfAllFilesAtOnce) {
  Write("a.yaml", "endpoints: [{name: a}]\n");
  Write("b.yaml", "kind: [\n");
  Write("c.yaml", Endpoint("c"));
  const LoadResult result = LoadManifests({folder_.string(), (folder_ / "d.yaml").string()});
  EXPECT_THAT(Problems(result), ElementsAre("T/a.yaml:1: endpoints[0].address: is required",
                                            "T/a.yaml:1: endpoints[0].port: is required",
                                            "T/b.yaml:2: not valid YAML: a [ is not closed by a ] (column 1)",
                                            "T/d.yaml: no such file or folder; did you mean \"T/a.yaml\"?"));
  EXPECT_FALSE(result.ok());
}

TEST_F(Load, ReferencesGoAcrossFiles) {
  Write("1.yaml", R"(apiVersion: inference.networking.x-k8s.io/v1alpha2
kind: InferenceModel
metadata: {name: m}
spec: {modelName: a, poolRef: {name: pool}}
)");
  Write("2.yaml", R"(apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: {name: pool-1}
spec: {selector: {matchLabels: {a: b}}, targetPorts: [{number: 1}]}
)");
  EXPECT_THAT(
      Problems(LoadManifests({folder_.string()})),
      ElementsAre(
          "T/1.yaml:4: InferenceModel default/m: spec.poolRef.name: no InferencePool \"pool\" in namespace "
          "\"default\"; did you mean \"pool-1\"?"));
}

TEST_F(Load, TheFingerprintChangesWithTheContentOnly) {
  Write("a.yaml", Endpoint("a"));
  const uint64_t before = LoadManifests({folder_.string()}).fingerprint;
  Write("a.yaml", Endpoint("a"));
  Write(".a.yaml", Endpoint("b"));
  EXPECT_EQ(LoadManifests({folder_.string()}).fingerprint, before);
  Write("a.yaml", Endpoint("b"));
  const uint64_t changed = LoadManifests({folder_.string()}).fingerprint;
  EXPECT_NE(changed, before);
  Write("b.yaml", "# nothing");
  EXPECT_NE(LoadManifests({folder_.string()}).fingerprint, changed);
  fs::remove(folder_ / "a.yaml");
  fs::remove(folder_ / "b.yaml");
  EXPECT_NE(LoadManifests({folder_.string()}).fingerprint, changed);
}

TEST_F(Load, WhatIsNoFile) {
  EXPECT_THAT(
      Problems(LoadManifests({folder_.string()})),
      ElementsAre(
          "T: no *.yaml, *.yml or *.json file in this folder (folders inside it are not looked into)"));
  const std::string pipe = (folder_ / "pipe.yaml").string();
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  // Nobody writes to it: a wait with an end. In a folder it does not count as a manifest.
  EXPECT_THAT(Problems(LoadManifests({pipe})), ElementsAre("T/pipe.yaml: no data came within 5 s"));
  Write("a.yaml", Endpoint("a"));
  EXPECT_THAT(Problems(LoadManifests({folder_.string()})), IsEmpty());
  fs::create_symlink(folder_ / "gone.yaml", folder_ / "z.yaml");
  EXPECT_THAT(Problems(LoadManifests({folder_.string()})),
              ElementsAre("T/z.yaml: cannot be opened: No such file or directory"));
  EXPECT_THAT(Problems(LoadManifests({"/dev/zero"})),
              ElementsAre("/dev/zero: larger than 16 MiB; split it into files of one folder"));
  EXPECT_THAT(Problems(LoadManifests({Write("a.yaml", "") + "/b.yaml"})),
              ElementsAre(HasSubstr("T/a.yaml/b.yaml: no such file or folder")));
}

TEST_F(Load, StandardInput) {
  const std::string file = Write("in", Endpoint("a"));
  const int saved = ::dup(STDIN_FILENO);
  const int input = ::open(file.c_str(), O_RDONLY | O_CLOEXEC);
  ASSERT_GE(input, 0);
  ASSERT_EQ(::dup2(input, STDIN_FILENO), STDIN_FILENO);
  const LoadResult result = LoadManifests({"-"});
  ASSERT_EQ(::dup2(saved, STDIN_FILENO), STDIN_FILENO);
  ::close(saved);
  ::close(input);
  EXPECT_THAT(Problems(result), IsEmpty());
  EXPECT_THAT(Names(result), ElementsAre("a"));
  EXPECT_THAT(result.files, ElementsAre("-"));
}

// --- The examples of this repository: what `fairway check` says about them. ---

// ctest starts each room's tests at the top of the source.
fs::path Examples() { return "examples"; }

TEST(Examples, TheIntroductionAsPublishedNamesTheMismatch) {
  const std::string route = (Examples() / "intro-route.yaml").string();
  const LoadResult result = LoadManifests(
      {(Examples() / "intro-model.yaml").string(), (Examples() / "intro-pool.yaml").string(), route});
  ASSERT_EQ(result.problems.size(), 1u);
  EXPECT_EQ(ToString(result.problems[0]),
            route +
                ":15: HTTPRoute default/llm-route: spec.rules[0].backendRefs[0].name: no InferencePool "
                "\"vllm-llama2-7b\" in namespace \"default\"; did you mean \"vllm-llama2-7b-pool\"?");
}

TEST(Examples, IntroFixed) {
  const LoadResult result = LoadManifests({(Examples() / "intro-fixed").string()});
  EXPECT_THAT(result.problems, IsEmpty());
  EXPECT_EQ(Summarize(result.manifests),
            R"(InferencePool default/vllm-llama2-7b-pool (inference.networking.x-k8s.io)
  selector          app=vllm-llama2-7b
  ports             8000 (http)
  failure mode      FailClose
  endpoints         3
    llama2-1        127.0.0.1:8101
    llama2-2        127.0.0.1:8102
    llama2-3        127.0.0.1:8103
  model             llama2 [Critical] -> vllm-llama2-7b-2024-11-20 (weight 75, 75 %), vllm-llama2-7b-2025-03-24 (weight 25, 25 %)
Gateway default/inference-gateway
  listener          http: port 8080, HTTP, all hosts
HTTPRoute default/llm-route
  gateway           default/inference-gateway
  match             prefix /
    to              InferencePool default/vllm-llama2-7b-pool
)");
}

TEST(Examples, Criticality) {
  const LoadResult result = LoadManifests({(Examples() / "criticality").string()});
  EXPECT_THAT(result.problems, IsEmpty());
  EXPECT_EQ(Summarize(result.manifests), R"(InferencePool default/llama3-8b (inference.networking.x-k8s.io)
  selector          app=llama3-8b
  ports             8000 (http)
  failure mode      FailClose
  endpoints         3
    llama3-1        127.0.0.1:8201
    llama3-2        127.0.0.1:8202
    llama3-3        127.0.0.1:8203
  model             chat [Critical] -> chat-lora
  model             summarize [Standard] -> summarize-lora-v1 (weight 90, 90 %), summarize-lora-v2 (weight 10, 10 %)
  model             batch [Sheddable] -> batch-lora
Gateway default/inference-gateway
  listener          http: port 8080, HTTP, all hosts
HTTPRoute default/llm-route
  gateway           default/inference-gateway
  match             prefix /
    to              InferencePool default/llama3-8b
)");
}

TEST(Examples, TwoPools) {
  const LoadResult result = LoadManifests({(Examples() / "two-pools").string()});
  EXPECT_THAT(result.problems, IsEmpty());
  EXPECT_EQ(Summarize(result.manifests), R"(InferencePool default/llama3-8b (inference.networking.k8s.io)
  selector          app=llama3-8b
  ports             8000 (http)
  failure mode      FailOpen
  endpoints         2
    llama3-1        127.0.0.1:8301
    llama3-2        127.0.0.1:8302
  models            any (no InferenceModel names this pool)
InferencePool default/qwen3-32b (inference.networking.k8s.io)
  selector          app=qwen3-32b
  ports             8000 (http)
  failure mode      FailClose
  endpoints         2
    qwen3-1         127.0.0.1:8311
    qwen3-2         127.0.0.1:8312
  models            any (no InferenceModel names this pool)
Gateway default/inference-gateway
  listener          http: port 8080, HTTP, all hosts
HTTPRoute default/llm-route
  gateway           default/inference-gateway
  match             prefix /v1/completions
    to              InferencePool default/qwen3-32b
  match             prefix /
    to              InferencePool default/llama3-8b (weight 90, 90 %)
    to              InferencePool default/qwen3-32b (weight 10, 10 %)
)");
}

TEST(Examples, Objectives) {
  const LoadResult result = LoadManifests({(Examples() / "objectives").string()});
  EXPECT_THAT(result.problems, IsEmpty());
  EXPECT_EQ(Summarize(result.manifests), R"(InferencePool default/llama3-8b (inference.networking.k8s.io)
  selector          app=llama3-8b
  ports             8000 (http)
  failure mode      FailClose
  endpoints         2
    llama3-1        127.0.0.1:8401
    llama3-2        127.0.0.1:8402
  models            any (no InferenceModel names this pool)
  rewrite           chat -> chat-lora-v1 (weight 90, 90 %), chat-lora-v2 (weight 10, 10 %) (canary)
  rewrite           any other model -> llama3-8b (canary)
  objective         interactive: priority 10
  objective         batch: priority -10, may be shed
Gateway default/inference-gateway
  listener          http: port 8080, HTTP, all hosts
HTTPRoute default/llm-route
  gateway           default/inference-gateway
  match             prefix /
    to              InferencePool default/llama3-8b
)");
}

TEST(Summary, TheRest) {
  const LoadResult result = ParseManifests(R"(endpoints:
- {name: a, address: ::1, port: "8000", metricsPort: 9000, labels: {app: x}}
---
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: {name: p}
spec:
  selector: {matchLabels: {app: x, tier: gold}}
  targetPorts: [{number: 8000}, {number: 8001}]
  appProtocol: kubernetes.io/h2c
---
apiVersion: inference.networking.x-k8s.io/v1alpha2
kind: InferenceModel
metadata: {name: m}
spec: {modelName: base, poolRef: {name: p}}
---
apiVersion: inference.networking.x-k8s.io/v1alpha2
kind: InferenceModel
metadata: {name: n}
spec: {modelName: three, poolRef: {name: p}, targetModels: [{name: a}, {name: b}, {name: c}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r}
spec:
  parentRefs: [{name: g, sectionName: s, port: 80}]
  hostnames: [a.example.com]
  rules:
  - matches: [{path: {type: Exact, value: /x}, method: GET, headers: [{name: h, value: v}], queryParams: [{name: q, value: w, type: RegularExpression}]}, {path: {type: RegularExpression, value: "/y.*"}}]
    timeouts: {request: 1s}
    backendRefs: [{name: svc, port: 80}]
  - {}
)",
                                           "f");
  EXPECT_TRUE(result.ok());
  EXPECT_EQ(Summarize(result.manifests), R"(InferencePool default/p (inference.networking.k8s.io)
  selector          app=x, tier=gold
  ports             8000, 8001 (h2c)
  failure mode      FailClose
  endpoints         none
  model             base [unset] -> base
  model             three [unset] -> a (33.3 %), b (33.3 %), c (33.3 %)
Gateway: none given; local mode adds a listener of its own
HTTPRoute default/r
  gateway           default/g, listener s, port 80
  host              a.example.com
  match             path /x, method GET, header h=v, query q~w
  match             regex /y.*
    timeout         1000 ms
    to              Service default/svc (not served locally)
  match             prefix /
    to              nothing: answered with 500
)");
  const LoadResult endpoints = ParseManifests("endpoints: [{name: a, address: ::1, port: '8000'}]", "f");
  EXPECT_EQ(Summarize(endpoints.manifests),
            "endpoints without an InferencePool: 1\n  a                 [::1]:8000\n");
  EXPECT_EQ(Summarize({}), "nothing to serve\n");
}

}  // namespace
}  // namespace fairway::api
