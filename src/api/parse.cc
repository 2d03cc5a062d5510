// From a text to objects: which document is what.
#include <algorithm>
#include <array>
#include <map>

#include "api/decode.h"
#include "api/manifests.h"
#include "base/strings.h"

namespace fairway::api {
namespace {

struct KnownKind {
  std::string_view group;
  std::string_view kind;
  std::string_view versions;  // separated by blanks; "" is any
  bool served;                // else a warning that it has no effect, or silence when `why` is ""
  std::string_view why;
};

constexpr std::string_view kNotYet = "is not served yet and has no effect here";
constexpr std::string_view kNoManifest =
    "is no manifest and has no effect here: give its file to --config-file";
constexpr std::string_view kNotLocal = "is not served locally and has no effect here";

constexpr std::array<KnownKind, 17> kKinds{{
    {kInferenceGroup, "InferencePool", "v1", true, ""},
    {kInferenceGroupX, "InferencePool", "v1alpha2", true, ""},
    {kInferenceGroupX, "InferenceModel", "v1alpha2", true, ""},
    {kGatewayGroup, "Gateway", "v1 v1beta1", true, ""},
    {kGatewayGroup, "HTTPRoute", "v1 v1beta1", true, ""},
    {kLlmdGroup, "InferenceObjective", "v1alpha2", true, ""},
    {kLlmdGroup, "InferenceModelRewrite", "v1alpha2", true, ""},
    {kInferenceGroupX, "InferenceObjective", "v1alpha2", true, ""},
    {kInferenceGroupX, "InferenceModelRewrite", "v1alpha2", true, ""},
    {kInferenceGroupX, "InferencePoolImport", "", false, kNotYet},
    {kInferenceGroupX, "EndpointPickerConfig", "", false, kNoManifest},
    {kLlmdGroup, "EndpointPickerConfig", "", false, kNoManifest},
    {kGatewayGroup, "GRPCRoute", "", false, kNotLocal},
    {kGatewayGroup, "TLSRoute", "", false, kNotLocal},
    {kGatewayGroup, "TCPRoute", "", false, kNotLocal},
    {kGatewayGroup, "UDPRoute", "", false, kNotLocal},
    {kGatewayGroup, "GatewayClass", "", false, ""},
}};

// Ours or near it, so that what is unknown in it is a mistake rather than somebody else's object.
bool IsOurGroup(std::string_view group) { return group == kInferenceGroup || group == kInferenceGroupX; }

std::string ApiVersions(std::string_view kind) {
  std::string out;
  for (const KnownKind& known : kKinds) {
    if (known.kind != kind || !known.served) continue;
    for (const std::string_view version : base::Split(known.versions, ' ')) {
      if (!out.empty()) out += " or ";
      out += std::string(known.group) + "/" + std::string(version);
    }
  }
  return out;
}

class TextReader {
 public:
  TextReader(Manifests& manifests, ProblemList& problems, bool allow_unknown,
             const CheckPattern* check_pattern)
      : manifests_(manifests),
        problems_(problems),
        allow_unknown_(allow_unknown),
        check_pattern_(check_pattern) {}

  void ReadDocument(const Value& value) {
    if (value.kind == Value::Kind::kNull) return;
    ObjectContext context{&problems_, "", allow_unknown_, check_pattern_};
    const Node root(&context, &value, "", value.line);
    if (value.kind == Value::Kind::kList) {  // a JSON array of objects
      for (const ValuePtr& item : value.items) ReadDocument(*item);
      return;
    }
    if (value.kind != Value::Kind::kMap) {
      root.WrongType("a Kubernetes object or an endpoints file");
      return;
    }
    const bool has_kind = value.Find("kind") != nullptr || value.Find("apiVersion") != nullptr;
    if (!has_kind && value.Find("endpoints") != nullptr) {
      ObjectReader reader(root);
      std::vector<Endpoint> endpoints = ReadEndpoints(reader);
      std::move(endpoints.begin(), endpoints.end(), std::back_inserter(manifests_.endpoints));
      return;
    }
    if (!has_kind) {
      std::string hint;
      const std::vector<std::string> known{"apiVersion", "kind", "endpoints"};
      for (const Value::Entry& entry : value.entries) {
        if (hint.empty()) hint = DidYouMean(entry.key, known);
      }
      root.Error("neither a Kubernetes object (apiVersion and kind) nor an endpoints file (endpoints)" +
                 hint);
      return;
    }
    ReadObject(root, context);
  }

 private:
  void ReadObject(const Node& root, ObjectContext& context) {
    ObjectReader reader(root);
    const auto api_version = reader.Require("apiVersion").Text();
    const auto kind = reader.Require("kind").Text();
    if (!api_version || !kind) return;
    if (kind->ends_with("List") && root.Child("items").Is(Value::Kind::kList)) {
      for (const ValuePtr& item : root.Child("items").value().items) ReadDocument(*item);
      return;
    }
    const size_t slash = api_version->rfind('/');
    const std::string group = slash == std::string::npos ? "" : api_version->substr(0, slash);
    const std::string version = slash == std::string::npos ? *api_version : api_version->substr(slash + 1);
    context.name = *kind + NameOf(root);

    const KnownKind* known = Find(group, *kind);
    if (known == nullptr) {
      CheckForeign(reader, group, *kind);
      return;
    }
    if (!known->served) {
      if (!known->why.empty()) root.Warn(std::string(known->why));
      return;
    }
    const auto versions = base::Split(known->versions, ' ');
    if (std::find(versions.begin(), versions.end(), version) == versions.end()) {
      WrongApiVersion(reader, *kind);
      return;
    }
    ReadKnown(reader, *known);
  }

  static const KnownKind* Find(std::string_view group, std::string_view kind) {
    const auto* found = std::find_if(kKinds.begin(), kKinds.end(),
                                     [&](const KnownKind& k) { return k.group == group && k.kind == kind; });
    return found == kKinds.end() ? nullptr : found;
  }

  static void WrongApiVersion(ObjectReader& reader, std::string_view kind) {
    const Node node = reader.Get("apiVersion");
    node.Error("want " + ApiVersions(kind) + ", got " + Quote(node.value().text));
  }

  // An object that is none of ours: skipped silently, unless it looks like a slip of the pen.
  static void CheckForeign(ObjectReader& reader, const std::string& group, const std::string& kind) {
    std::vector<std::string> kinds;
    std::vector<std::string> groups;
    bool kind_is_ours = false;
    for (const KnownKind& known : kKinds) {
      if (known.group == group) kinds.emplace_back(known.kind);
      groups.emplace_back(known.group);
      kind_is_ours = kind_is_ours || (known.served && known.kind == kind);
    }
    const bool near_group = !group.empty() && !DidYouMean(group, groups).empty();
    // Other projects have a "Gateway" too; the rest are names of ours alone.
    if (kind_is_ours && (kind != "Gateway" || near_group)) {
      WrongApiVersion(reader, kind);
      return;
    }
    // These have kinds that are none of ours, too: only what is nearly one is a slip.
    const bool shared = group == kGatewayGroup || group == kLlmdGroup;
    if (IsOurGroup(group) || (shared && !DidYouMean(kind, kinds).empty() && kind != "ReferenceGrant")) {
      const Node node = reader.Get("kind");
      node.Error("no kind " + Quote(kind) + " in " + group + DidYouMean(kind, kinds));
    }
  }

  // " default/llm-route" before the metadata is checked, so that problems of the metadata name the object
  // too.
  static std::string NameOf(const Node& root) {
    const Node metadata = root.Child("metadata");
    const Node name = metadata.Child("name");
    const Node space = metadata.Child("namespace");
    if (!name.Is(Value::Kind::kString)) return "";
    const std::string quoted = Quote(name.value().text);
    const std::string namespace_name =
        space.Is(Value::Kind::kString) ? Quote(space.value().text) : "\"default\"";
    // Quote escapes and cuts; its quotes themselves are not wanted here.
    const auto bare = [](std::string text) {
      text.erase(text.begin());
      text.erase(text.rfind('"'), 1);
      return text;
    };
    return " " + bare(namespace_name) + "/" + bare(quoted);
  }

  void ReadKnown(ObjectReader& reader, const KnownKind& known) {
    reader.Ignore({"status"});
    ObjectMeta meta = ReadMeta(reader.Require("metadata"), reader.node().line());
    if (known.kind == "InferencePool") {
      manifests_.pools.push_back(known.group == kInferenceGroup ? ReadPoolV1(reader, std::move(meta))
                                                                : ReadPoolV1Alpha2(reader, std::move(meta)));
    } else if (known.kind == "InferenceModel") {
      manifests_.models.push_back(ReadModel(reader, std::move(meta)));
    } else if (known.kind == "InferenceObjective") {
      manifests_.objectives.push_back(ReadObjective(reader, std::move(meta), known.group));
    } else if (known.kind == "InferenceModelRewrite") {
      manifests_.rewrites.push_back(ReadRewrite(reader, std::move(meta), known.group));
    } else if (known.kind == "Gateway") {
      manifests_.gateways.push_back(ReadGateway(reader, std::move(meta)));
    } else {
      manifests_.routes.push_back(ReadRoute(reader, std::move(meta)));
    }
    reader.Finish();
  }

  Manifests& manifests_;
  ProblemList& problems_;
  bool allow_unknown_;
  const CheckPattern* check_pattern_;
};

// In the order of the lines, as a reader goes through the file.
void SortByLine(std::vector<Problem>& problems) {
  std::map<int, std::vector<Problem>> by_line;
  for (Problem& problem : problems) by_line[problem.where.line].push_back(std::move(problem));
  problems.clear();
  for (auto& [line, of_line] : by_line)
    std::move(of_line.begin(), of_line.end(), std::back_inserter(problems));
}

LoadResult Parse(std::string_view text, std::string_view name, std::string_view syntax_by_name,
                 bool allow_unknown, const CheckPattern* check_pattern) {
  LoadResult result;
  result.files.emplace_back(name);
  ProblemList problems(std::string(name), result.problems);
  if (text.empty()) {
    // A file that is being written is empty for a moment: taking it for "no objects" would drop everything
    // that is served.
    problems.Add(Severity::kError, 0, "", "", "the file is empty");
    return result;
  }
  const ParsedText parsed = ParseText(text, syntax_by_name);
  for (const SyntaxProblem& problem : parsed.problems)
    problems.Add(Severity::kError, problem.line, "", "", problem.message);
  TextReader reader(result.manifests, problems, allow_unknown, check_pattern);
  for (const ValuePtr& document : parsed.documents) reader.ReadDocument(*document);
  const bool nothing =
      std::all_of(parsed.documents.begin(), parsed.documents.end(),
                  [](const ValuePtr& document) { return document->kind == Value::Kind::kNull; });
  if (nothing && parsed.problems.empty())
    problems.Add(Severity::kWarning, 0, "", "", "there is no object in this file");
  SortByLine(result.problems);
  return result;
}

}  // namespace

LoadResult ParseManifests(std::string_view text, std::string_view file_name) {
  return Parse(text, file_name, file_name, false, nullptr);
}

LoadResult ParseManifests(std::string_view text, std::string_view file_name,
                          const CheckPattern& check_pattern) {
  return Parse(text, file_name, file_name, false, check_pattern ? &check_pattern : nullptr);
}

LoadResult ParseObject(std::string_view json, std::string_view source) {
  return Parse(json, source, "object.json", true, nullptr);
}

}  // namespace fairway::api
