#include "sources/files/name_resolver.h"

#include <algorithm>
#include <set>
#include <utility>

#include "net/name_lookup.h"

namespace fairway::sources {

struct NameResolver::Impl : std::enable_shared_from_this<NameResolver::Impl> {
  Impl(net::Loop& loop, const base::Log& l, Changed c)
      : lookup(loop, {.only_configured = true}), log(l), changed(std::move(c)), timer(loop) {}

  void LookUp(const std::string& name) {
    if (!pending.insert(name).second) return;  // its nameserver is silent
    lookup.Find(name, [weak = weak_from_this(), name](const net::LookupResult& result) {
      const auto self = weak.lock();
      if (self == nullptr) return;
      self->pending.erase(name);
      if (!self->wanted.contains(name)) return;
      if (result.addresses.empty()) {
        if (self->failing.insert(name).second) {
          self->log.Warn("endpoint's host name has no address",
                         {{"name", name},
                          {"error", result.error},
                          {"serving", self->found.contains(name) ? "its last address" : "without it"}});
        }
        return;
      }
      self->failing.erase(name);
      const std::string& address = result.addresses.front();
      auto [slot, fresh] = self->found.try_emplace(name, address);
      if (!fresh && slot->second == address) return;
      slot->second = address;
      self->changed(self->found);
    });
  }

  net::NameLookup lookup;
  const base::Log& log;
  Changed changed;
  net::Timer timer;
  Addresses found;
  std::set<std::string> wanted, pending, failing;
};

NameResolver::NameResolver(net::Loop& loop, const base::Log& log, Changed changed, base::Nanos interval)
    : impl_(std::make_shared<Impl>(loop, log, std::move(changed))) {
  impl_->timer.Every(interval, [impl = impl_.get()] {
    for (const auto& name : impl->wanted) impl->LookUp(name);
  });
}

NameResolver::~NameResolver() { impl_->timer.Cancel(); }

void NameResolver::Watch(std::vector<std::string> names) {
  impl_->wanted = {names.begin(), names.end()};
  std::erase_if(impl_->found, [this](const auto& entry) { return !impl_->wanted.contains(entry.first); });
  for (const auto& name : impl_->wanted) {
    if (!impl_->found.contains(name)) impl_->LookUp(name);
  }
}

const NameResolver::Addresses& NameResolver::addresses() const { return impl_->found; }

}  // namespace fairway::sources
