#include "picker/fleet_page.h"

#include <utility>

#include "base/json_writer.h"

namespace fairway::picker {
namespace {

constexpr size_t kPiece = 64u << 10;

// null: its page does not say it.
void WriteAttributes(const fleet::EndpointCell& cell, const std::vector<std::string>& attributes,
                     base::JsonWriter& json) {
  if (attributes.empty()) return;
  const fleet::PageAttributes* said = cell.attributes();
  json.Key("attributes").BeginObject();
  for (const std::string& name : attributes) {
    json.Key(name);
    said != nullptr ? json.Value(said->Get(fleet::PageAttributes::KeyOf(name))) : json.Null();
  }
  json.EndObject();
}

void WriteEndpoint(const fleet::Endpoint& endpoint, const fleet::PoolSnapshot& pool,
                   const std::vector<std::string>& attributes, base::Nanos now, base::JsonWriter& json) {
  const fleet::EndpointCell& cell = *endpoint.cell;
  json.BeginObject();
  json.Member("name", endpoint.name).Member("address", endpoint.address);
  json.Member("waiting", cell.waiting()).Member("running", cell.running()).Member("kvUsage", cell.kv_usage());
  json.Member("inflight", cell.own()).Member("others", cell.others()).Member("workMs", cell.work_ms(now));
  json.Member("msPerToken", cell.ms_per_token()).Key("scrapeAgeMs");
  cell.scraped_at() == 0 ? json.Null() : json.Value((now - cell.scraped_at()) / base::kMillisecond);
  json.Member("refusing", cell.refusing()).Key("adapters").BeginList();
  for (const auto& [name, id] : pool.adapters) {
    if (cell.adapter_running(id)) json.Value(name);
  }
  json.EndList();
  WriteAttributes(cell, attributes, json);
  json.EndObject();
}

// Where in the snapshot the next piece begins.
class Pages {
 public:
  Pages(std::shared_ptr<const fleet::Snapshot> snapshot, base::Nanos now, AttributesOfPool attributes)
      : snapshot_(std::move(snapshot)),
        now_(now),
        attributes_of_(std::move(attributes)),
        pool_(snapshot_->pools.begin()) {}

  std::string Next() {
    std::string out;
    if (ended_) return out;
    if (!std::exchange(began_, true))
      base::JsonWriter(out).BeginObject().Member("version", snapshot_->version).Key("pools").BeginList();
    while (pool_ != snapshot_->pools.end()) {
      if (out.size() >= kPiece) return out;
      AppendPool(out, *pool_->second, pool_->first);
    }
    ended_ = true;
    return out + "]}\n";
  }

 private:
  // As much of it as fits.
  void AppendPool(std::string& out, const fleet::PoolSnapshot& pool, const std::string& key) {
    if (!std::exchange(in_pool_, true)) {
      if (pool_ != snapshot_->pools.begin()) out += ',';
      base::JsonWriter json(out);
      json.BeginObject().Member("name", key).Key("models").BeginList();
      for (const auto& [name, model] : pool.models) json.Value(name);
      json.EndList().Key("endpoints").BeginList();
      attributes_ = attributes_of_(key);
    }
    for (; endpoint_ < pool.endpoints.size(); ++endpoint_) {
      if (out.size() >= kPiece) return;
      if (endpoint_ > 0) out += ',';
      base::JsonWriter json(out);
      WriteEndpoint(pool.endpoints[endpoint_], pool, attributes_, now_, json);
    }
    out += "]}";
    ++pool_;
    endpoint_ = 0;
    in_pool_ = false;
  }

  const std::shared_ptr<const fleet::Snapshot> snapshot_;
  const base::Nanos now_;
  const AttributesOfPool attributes_of_;
  std::vector<std::string> attributes_;  // of the pool that is being written
  decltype(fleet::Snapshot::pools)::const_iterator pool_;
  size_t endpoint_ = 0;
  bool in_pool_ = false;
  bool began_ = false;
  bool ended_ = false;
};

}  // namespace

std::function<std::string()> FleetPage(std::shared_ptr<const fleet::Snapshot> snapshot, base::Nanos now,
                                       AttributesOfPool attributes) {
  return [pages = std::make_shared<Pages>(std::move(snapshot), now, std::move(attributes))] {
    return pages->Next();
  };
}

}  // namespace fairway::picker
