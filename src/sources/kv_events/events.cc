#include "sources/kv_events/events.h"

#include <algorithm>
#include <array>

#include "sources/kv_events/big_endian.h"
#include "sources/kv_events/msgpack.h"

namespace fairway::sources::kv_events {
namespace {

using Kind = MsgpackToken::Kind;

// Beyond it a number of tokens or blocks is nonsense, and sums of it could overflow.
constexpr uint64_t kMostTokens = uint64_t{1} << 32;

enum class Field : uint8_t {
  kType,
  kHashes,
  kParent,
  kTokens,
  kBlockSize,
  kMedium,
  kAdapter,
  kExtraKeys,
  kGroup,
  kSpecKind,
  kOther
};

struct NamedField {
  std::string_view name;
  Field field;
};
constexpr std::array kNames{NamedField{"type", Field::kType},
                            NamedField{"block_hashes", Field::kHashes},
                            NamedField{"parent_block_hash", Field::kParent},
                            NamedField{"token_ids", Field::kTokens},
                            NamedField{"block_size", Field::kBlockSize},
                            NamedField{"medium", Field::kMedium},
                            NamedField{"lora_name", Field::kAdapter},
                            NamedField{"extra_keys", Field::kExtraKeys},
                            NamedField{"group_idx", Field::kGroup},
                            NamedField{"kv_cache_spec_kind", Field::kSpecKind}};

// By place, behind the type.
constexpr std::array kStoredFields{Field::kHashes, Field::kParent,  Field::kTokens,  Field::kBlockSize,
                                   Field::kOther,  Field::kMedium,  Field::kAdapter, Field::kExtraKeys,
                                   Field::kGroup,  Field::kSpecKind};

uint64_t NameOf(const MsgpackToken& hash) {
  if (hash.kind == Kind::kInteger) return hash.number;
  const size_t size = std::min<size_t>(hash.bytes.size(), 8);
  return ReadBigEndian(hash.bytes.substr(hash.bytes.size() - size));
}
bool IsHash(const MsgpackToken& token) {
  return token.kind == Kind::kInteger || (token.kind == Kind::kBytes && !token.bytes.empty());
}
constexpr std::array kRemovedFields{Field::kHashes, Field::kMedium, Field::kGroup};

bool IsDevice(std::string_view medium) {
  return medium.size() == 3 && (medium[0] | 0x20) == 'g' && (medium[1] | 0x20) == 'p' &&
         (medium[2] | 0x20) == 'u';
}

bool IsWholePrefix(std::string_view kind) {
  return kind == "full_attention" || kind == "mla_attention" || kind == "sink_full_attention";
}

enum class Outcome : uint8_t { kRead, kUnknown, kMalformed };

class EventReader {
 public:
  explicit EventReader(std::string_view bytes) : reader_(bytes) {}

  Outcome Read(KvEvent& event) {
    const auto head = reader_.Next();
    if (!head) return Outcome::kMalformed;
    const bool read = head->kind == Kind::kMap     ? ReadMap(head->number)
                      : head->kind == Kind::kArray ? ReadArray(head->number)
                                                   : false;
    if (type_ == "AllBlocksCleared") {
      event_.kind = KvEvent::Kind::kCleared;
    } else if (type_ == "BlockStored") {
      event_.kind = KvEvent::Kind::kStored;
    } else if (type_ == "BlockRemoved") {
      event_.kind = KvEvent::Kind::kRemoved;
    } else {
      return type_.empty() ? Outcome::kMalformed : Outcome::kUnknown;
    }
    if (!read || !Fits()) return Outcome::kMalformed;
    event = event_;
    return Outcome::kRead;
  }

 private:
  bool ReadMap(uint64_t pairs) {
    for (; pairs > 0; --pairs) {
      const auto key = reader_.Next();
      if (!key || key->kind != Kind::kText) return false;
      const auto named = std::find_if(kNames.begin(), kNames.end(),
                                      [&](const NamedField& field) { return field.name == key->bytes; });
      if (!ReadField(named == kNames.end() ? Field::kOther : named->field)) fits_ = false;
    }
    return true;
  }

  bool ReadArray(uint64_t items) {
    if (items == 0 || !ReadField(Field::kType)) return false;
    for (size_t i = 0; i + 1 < items; ++i) {
      Field field = Field::kOther;
      if (type_ == "BlockStored" && i < kStoredFields.size()) field = kStoredFields[i];
      if (type_ == "BlockRemoved" && i < kRemovedFields.size()) field = kRemovedFields[i];
      if (!ReadField(field)) return false;
    }
    return true;
  }

  // Takes the value's bytes, or what there is of it, whatever it is: false when it cannot be.
  bool ReadField(Field field) {
    if (field == Field::kOther) return reader_.Skip();
    MsgpackReader value = reader_;
    const std::string_view before = reader_.rest();
    if (!reader_.Skip()) return false;
    const std::string_view whole = before.substr(0, before.size() - reader_.rest().size());
    const auto token = value.Next();
    if (token->kind == Kind::kNil) return true;
    switch (field) {
      case Field::kType:
        type_ = token->bytes;
        return token->kind == Kind::kText;
      case Field::kHashes:
        event_.blocks = token->number;
        event_.hashes = whole;
        return token->kind == Kind::kArray && AreHashes(value, token->number);
      case Field::kTokens:
        tokens_ = token->number;
        if (tokens_ != 0) event_.tokens = whole;
        return token->kind == Kind::kArray;
      case Field::kParent:
        if (!IsHash(*token)) return false;
        if (NameOf(*token) != 0) event_.parent = NameOf(*token);  // 0 is none
        return true;
      case Field::kBlockSize:
        event_.block_size = token->number;
        return token->kind == Kind::kInteger && token->number < kMostTokens;
      case Field::kMedium:
        event_.on_device = IsDevice(token->bytes);
        event_.medium = token->bytes;
        return token->kind == Kind::kText;
      case Field::kAdapter:
        event_.adapter = token->bytes;
        return token->kind == Kind::kText;
      case Field::kExtraKeys:
        event_.extra_keys = whole;
        return token->kind == Kind::kArray;
      case Field::kGroup:
        event_.group = static_cast<int64_t>(token->number);
        return token->kind == Kind::kInteger;
      case Field::kSpecKind:
        event_.whole_prefix = IsWholePrefix(token->bytes);
        return token->kind == Kind::kText;
      case Field::kOther:
        break;
    }
    return false;
  }

  static bool AreHashes(MsgpackReader& reader, uint64_t count) {
    for (; count > 0; --count) {
      const auto hash = reader.Next();
      if (!hash || !IsHash(*hash)) return false;
    }
    return true;
  }

  // Tokens may be missing: then blocks that were stored before are in another memory, too.
  bool Fits() const {
    if (!fits_) return false;
    if (event_.kind != KvEvent::Kind::kStored) return true;
    if (event_.block_size == 0 || event_.block_size > kMostBlockTokens) return false;
    return tokens_ == 0 || tokens_ == event_.blocks * event_.block_size;
  }

  MsgpackReader reader_;
  KvEvent event_;
  std::string_view type_;
  uint64_t tokens_ = 0;
  bool fits_ = true;
};

// Before the events of a batch: how many there are. Nothing: it is no batch.
std::optional<uint64_t> FindEvents(MsgpackReader& reader) {
  const auto head = reader.Next();
  if (!head) return std::nullopt;
  const auto list = [&]() -> std::optional<uint64_t> {
    const auto events = reader.Next();
    if (!events || events->kind != Kind::kArray) return std::nullopt;
    return events->number;
  };
  if (head->kind == Kind::kArray) {
    if (head->number < 2 || !reader.Skip()) return std::nullopt;
    return list();
  }
  if (head->kind != Kind::kMap) return std::nullopt;
  for (uint64_t pairs = head->number; pairs > 0; --pairs) {
    const auto key = reader.Next();
    if (!key || key->kind != Kind::kText) return std::nullopt;
    if (key->bytes == "events") return list();
    if (!reader.Skip()) return std::nullopt;
  }
  return std::nullopt;
}

}  // namespace

namespace {

// The rank that a batch is of, which stands behind its events.
int64_t RankOf(std::string_view payload) {
  MsgpackReader reader(payload);
  const auto head = reader.Next();
  if (!head) return 0;
  if (head->kind == Kind::kArray) {
    if (head->number < 3 || !reader.Skip() || !reader.Skip()) return 0;
  } else if (head->kind == Kind::kMap) {
    uint64_t pairs = head->number;
    for (;; --pairs) {
      if (pairs == 0) return 0;
      const auto key = reader.Next();
      if (!key) return 0;
      if (key->bytes == "data_parallel_rank") break;
      if (!reader.Skip()) return 0;
    }
  }
  const auto rank = reader.Next();
  return rank && rank->kind == Kind::kInteger ? static_cast<int64_t>(rank->number) : 0;
}

// The items of a list, each taken by `take`.
template <typename Take>
bool ReadList(std::string_view list, size_t most, const Take& take) {
  MsgpackReader reader(list);
  const auto head = reader.Next();
  if (!head || head->kind != Kind::kArray || head->number > most) return false;
  for (uint64_t left = head->number; left > 0; --left) {
    if (!take(reader)) return false;
  }
  return true;
}

}  // namespace

bool ReadHashes(std::string_view hashes, size_t most, std::vector<uint64_t>& to) {
  return ReadList(hashes, most, [&to](MsgpackReader& reader) {
    const auto hash = reader.Next();
    if (!hash || !IsHash(*hash)) return false;
    to.push_back(NameOf(*hash));
    return true;
  });
}

bool ReadTokens(std::string_view tokens, size_t most, std::vector<uint32_t>& to) {
  return ReadList(tokens, most, [&to](MsgpackReader& reader) {
    const auto token = reader.Next();
    if (!token || token->kind != Kind::kInteger || token->number > UINT32_MAX) return false;
    to.push_back(static_cast<uint32_t>(token->number));
    return true;
  });
}

bool ReadExtraKeys(std::string_view extra_keys, std::string_view adapter, size_t most,
                   std::vector<std::vector<std::string_view>>& to) {
  uint64_t left_of_all = kMostExtraKeys;
  const auto take = [adapter](const MsgpackToken& key, std::vector<std::string_view>& of_block) {
    const bool counts = key.kind == Kind::kBytes || (key.kind == Kind::kText && key.bytes != adapter);
    if (counts) of_block.push_back(key.bytes);
  };
  return ReadList(extra_keys, most, [&](MsgpackReader& reader) {
    std::vector<std::string_view>& of_block = to.emplace_back();
    const auto keys = reader.Next();
    if (!keys || (keys->kind != Kind::kNil && keys->kind != Kind::kArray)) return false;
    if (keys->kind == Kind::kArray && (keys->number > left_of_all)) return false;
    if (keys->kind == Kind::kArray) left_of_all -= keys->number;
    for (uint64_t left = keys->kind == Kind::kArray ? keys->number : 0; left > 0; --left) {
      MsgpackReader value = reader;
      if (!reader.Skip()) return false;
      auto key = value.Next();
      if (key->kind == Kind::kArray && key->number > 0) key = value.Next();  // of older ones: what, where
      if (key) take(*key, of_block);
    }
    return true;
  });
}

BatchOutcome ReadBatch(std::string_view payload, EventSink& sink) {
  BatchOutcome outcome;
  const int64_t rank = RankOf(payload);
  MsgpackReader reader(payload);
  const auto events = FindEvents(reader);
  if (!events) return outcome;
  for (uint64_t left = *events; left > 0; --left) {
    const std::string_view bytes = reader.rest();
    if (!reader.Skip()) {
      ++outcome.malformed;
      break;
    }
    KvEvent event;
    switch (EventReader(bytes.substr(0, bytes.size() - reader.rest().size())).Read(event)) {
      case Outcome::kRead:
        ++outcome.events;
        event.rank = rank;
        sink.On(event);
        break;
      case Outcome::kUnknown:
        ++outcome.unknown;
        break;
      case Outcome::kMalformed:
        ++outcome.malformed;
        break;
    }
  }
  outcome.readable = true;
  return outcome;
}

}  // namespace fairway::sources::kv_events
