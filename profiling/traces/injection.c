/* An NVTX injection library: it records the ranges of a process where Nsight Systems is not.
 *
 * NVTX loads the library that NVTX_INJECTION64_PATH names at the first call in a process, and hands
 * it tables of functions to replace. This one writes each event as a line of JSON to the file that
 * NVTX_RANGES_LOG names:
 *
 *   {"time": ns, "pid": .., "tid": .., "kind": "push", "domain": "..", "category": number,
 *    "color": 0xAARRGGBB, "message": "..", "payload": ..}
 *
 * Kinds are push, pop, start and end (these two with an "id"), mark, and category, which gives a
 * number its name. Times are those of CLOCK_MONOTONIC. A line is one write(2) to a file opened for
 * appending: lines of several threads and processes do not mix, nothing is lost when a process dies,
 * and a forked child just goes on.
 *
 * A payload is a number, or an object: the fields of a registered schema where they are integers or
 * floating-point numbers, alone or nested; null where it is anything else, NaN and infinity among
 * that, which JSON has no words for. Texts of wide characters are written as UTF-8.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <nvtx3/nvToolsExt.h>
#include <nvtx3/nvToolsExtPayload.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

/* ---- lines ------------------------------------------------------------------------------- */

enum { LINE_BYTES = 16384, TEXT_BYTES = 1024 };

typedef struct {
  char bytes[LINE_BYTES];
  size_t used;
} Line;

static int log_file = -1;

/* Adds formatted text; what does not fit is cut off, and the line then is not written. */
static void add(Line* line, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  size_t room = LINE_BYTES - line->used;
  int wanted = room ? vsnprintf(line->bytes + line->used, room, format, arguments) : -1;
  va_end(arguments);
  line->used = wanted < 0 || (size_t)wanted >= room ? LINE_BYTES : line->used + (size_t)wanted;
}

static void add_byte(Line* line, char byte) {
  if (line->used < LINE_BYTES) line->bytes[line->used++] = byte;
}

/* Adds a text in quotes, as JSON wants it; cut off where it is very long. */
static void add_text(Line* line, const char* text) {
  add_byte(line, '"');
  for (int left = TEXT_BYTES; *text && left; ++text, --left) {
    if ((unsigned char)*text < 0x20) {
      add(line, "\\u%04x", (unsigned)(unsigned char)*text);
      continue;
    }
    if (*text == '"' || *text == '\\') add_byte(line, '\\');
    add_byte(line, *text);
  }
  add_byte(line, '"');
}

static void add_real(Line* line, double number, int digits) {
  if (isfinite(number))
    add(line, "%.*g", digits, number);
  else
    add(line, "null");
}

/* Writes a text of wide characters as UTF-8, cut off where it is very long. Not with "%ls": in a
 * program that has set no locale that knows ASCII alone. */
static const char* narrow(const wchar_t* wide, char text[TEXT_BYTES]) {
  char *next = text, *last = text + TEXT_BYTES - 4;
  for (; wide && *wide && next < last; ++wide) {
    uint32_t code = (uint32_t)*wide;
    if (code < 0x80) {
      *next++ = (char)code;
      continue;
    }
    int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3; /* bytes of six bits behind the first */
    *next++ = (char)(0xFF00 >> (more + 1) | code >> 6 * more);
    while (more--) *next++ = (char)(0x80 | (code >> 6 * more & 0x3F));
  }
  *next = 0;
  return text;
}

static int64_t now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static void begin(Line* line, const char* kind, int64_t time) {
  line->used = 0;
  add(line, "{\"time\": %" PRId64 ", \"pid\": %d, \"tid\": %ld, \"kind\": \"%s\"", time,
      (int)getpid(), syscall(SYS_gettid), kind);
}

static void finish(Line* line) {
  add(line, "}\n");
  if (line->used < LINE_BYTES && write(log_file, line->bytes, line->used) < 0) return;
}

/* ---- domains and strings: a handle is the address of a copy of the name ------------------- */

static nvtxDomainHandle_t NVTX_API create_domain(const char* name) {
  return (nvtxDomainHandle_t)strdup(name);
}

static nvtxStringHandle_t NVTX_API register_text(nvtxDomainHandle_t domain, const char* text) {
  (void)domain;
  return (nvtxStringHandle_t)strdup(text);
}

static nvtxDomainHandle_t NVTX_API create_wide_domain(const wchar_t* name) {
  char text[TEXT_BYTES];
  return create_domain(narrow(name, text));
}

static nvtxStringHandle_t NVTX_API register_wide_text(nvtxDomainHandle_t domain,
                                                      const wchar_t* wide) {
  char text[TEXT_BYTES];
  return register_text(domain, narrow(wide, text));
}

static void add_domain(Line* line, nvtxDomainHandle_t domain) {
  add(line, ", \"domain\": ");
  add_text(line, domain ? (const char*)domain : "");
}

static void NVTX_API name_category(nvtxDomainHandle_t domain, uint32_t number, const char* name) {
  Line line;
  begin(&line, "category", now());
  add_domain(&line, domain);
  add(&line, ", \"category\": %" PRIu32 ", \"message\": ", number);
  add_text(&line, name);
  finish(&line);
}

static void NVTX_API name_wide_category(nvtxDomainHandle_t domain, uint32_t number,
                                        const wchar_t* name) {
  char text[TEXT_BYTES];
  name_category(domain, number, narrow(name, text));
}

static void NVTX_API name_default_category(uint32_t number, const char* name) {
  name_category(NULL, number, name);
}

static void NVTX_API name_wide_default_category(uint32_t number, const wchar_t* name) {
  name_wide_category(NULL, number, name);
}

/* ---- payloads ----------------------------------------------------------------------------- */

enum { SCHEMAS = 256, FIELDS = 16, FIELD_NAME = 32, DEEPEST = 4 };
enum { FLOAT_DIGITS = 9, DOUBLE_DIGITS = 17 }; /* with which the same number is read back */

typedef struct {
  char name[FIELD_NAME];
  uint64_t type, offset;
} Field;

typedef struct {
  Field fields[FIELDS];
  size_t count; /* 0 where we cannot read it */
} Schema;

static Schema schemas[SCHEMAS];
static uint64_t schema_count;
static pthread_mutex_t schema_lock = PTHREAD_MUTEX_INITIALIZER;

static uint64_t NVTX_API register_schema(nvtxDomainHandle_t domain,
                                         const nvtxPayloadSchemaAttr_t* given) {
  (void)domain;
  pthread_mutex_lock(&schema_lock);
  uint64_t number = schema_count < SCHEMAS ? schema_count++ : SCHEMAS;
  if (number < SCHEMAS && given->type == NVTX_PAYLOAD_SCHEMA_TYPE_STATIC &&
      given->numEntries <= FIELDS) {
    Schema* schema = &schemas[number];
    for (size_t k = 0; k < given->numEntries; ++k) {
      const nvtxPayloadSchemaEntry_t* entry = &given->entries[k];
      Field* field = &schema->fields[k];
      snprintf(field->name, sizeof field->name, "%s", entry->name ? entry->name : "");
      field->type = entry->flags ? NVTX_PAYLOAD_ENTRY_TYPE_INVALID : entry->type;
      field->offset = entry->offset;
    }
    schema->count = given->numEntries;
  }
  pthread_mutex_unlock(&schema_lock);
  return NVTX_PAYLOAD_SCHEMA_ID_DYNAMIC_START + number;
}

static void add_binary(Line* line, uint64_t type, const char* data, int depth) {
#define VALUE(name, kind, written)         \
  case NVTX_PAYLOAD_ENTRY_TYPE_##name: {   \
    kind value;                            \
    memcpy(&value, data, sizeof value);    \
    written;                               \
    return;                                \
  }
#define SIGNED(name, kind) VALUE(name, kind, add(line, "%" PRId64, (int64_t)value))
#define UNSIGNED(name, kind) VALUE(name, kind, add(line, "%" PRIu64, (uint64_t)value))
  switch (type) {
    SIGNED(INT8, int8_t)
    SIGNED(INT16, int16_t)
    SIGNED(INT32, int32_t)
    SIGNED(INT64, int64_t)
    UNSIGNED(UINT8, uint8_t)
    UNSIGNED(UINT16, uint16_t)
    UNSIGNED(UINT32, uint32_t)
    UNSIGNED(UINT64, uint64_t)
    VALUE(FLOAT32, float, add_real(line, value, FLOAT_DIGITS))
    VALUE(FLOAT64, double, add_real(line, value, DOUBLE_DIGITS))
  }
#undef UNSIGNED
#undef SIGNED
#undef VALUE
  uint64_t number = type - NVTX_PAYLOAD_SCHEMA_ID_DYNAMIC_START;
  if (type < NVTX_PAYLOAD_SCHEMA_ID_DYNAMIC_START || number >= SCHEMAS || depth > DEEPEST ||
      schemas[number].count == 0) {
    add(line, "null");
    return;
  }
  const Schema* schema = &schemas[number];
  if (schema->count == 1 && depth > 0) { /* the type of a field, in a schema of its own */
    add_binary(line, schema->fields[0].type, data + schema->fields[0].offset, depth + 1);
    return;
  }
  for (size_t k = 0; k < schema->count; ++k) {
    add(line, k ? ", " : "{");
    add_text(line, schema->fields[k].name);
    add(line, ": ");
    add_binary(line, schema->fields[k].type, data + schema->fields[k].offset, depth + 1);
  }
  add(line, "}");
}

static void add_payload(Line* line, const nvtxEventAttributes_t* event) {
  add(line, ", \"payload\": ");
  switch (event->payloadType) {
    case NVTX_PAYLOAD_TYPE_UNSIGNED_INT64: add(line, "%" PRIu64, event->payload.ullValue); return;
    case NVTX_PAYLOAD_TYPE_INT64: add(line, "%" PRId64, event->payload.llValue); return;
    case NVTX_PAYLOAD_TYPE_DOUBLE: add_real(line, event->payload.dValue, DOUBLE_DIGITS); return;
    case NVTX_PAYLOAD_TYPE_UNSIGNED_INT32: add(line, "%" PRIu32, event->payload.uiValue); return;
    case NVTX_PAYLOAD_TYPE_INT32: add(line, "%" PRId32, event->payload.iValue); return;
    case NVTX_PAYLOAD_TYPE_FLOAT: add_real(line, event->payload.fValue, FLOAT_DIGITS); return;
  }
  if (event->payloadType == NVTX_PAYLOAD_TYPE_EXT && event->payload.ullValue) {
    const nvtxPayloadData_t* data =
        (const nvtxPayloadData_t*)(uintptr_t)event->payload.ullValue;
    add_binary(line, data->schemaId, data->payload, 0);
    return;
  }
  add(line, "null");
}

/* ---- events ------------------------------------------------------------------------------- */

static void add_event(Line* line, const nvtxEventAttributes_t* event) {
  char text[TEXT_BYTES];
  const char* message = "";
  switch (event->messageType) {
    case NVTX_MESSAGE_TYPE_ASCII: message = event->message.ascii; break;
    case NVTX_MESSAGE_TYPE_REGISTERED: message = (const char*)event->message.registered; break;
    case NVTX_MESSAGE_TYPE_UNICODE: message = narrow(event->message.unicode, text); break;
  }
  add(line, ", \"category\": %" PRIu32 ", \"color\": %" PRIu32 ", \"message\": ", event->category,
      event->colorType == NVTX_COLOR_ARGB ? event->color : 0);
  add_text(line, message ? message : "");
  add_payload(line, event);
}

/* The clock is read last where a range begins and first where it ends: the time this takes lies
 * outside, in the range around it. */
static int NVTX_API push(nvtxDomainHandle_t domain, const nvtxEventAttributes_t* event) {
  Line rest, line;
  rest.used = 0;
  add_domain(&rest, domain);
  add_event(&rest, event);
  begin(&line, "push", now());
  if (rest.used < LINE_BYTES) add(&line, "%.*s", (int)rest.used, rest.bytes);
  finish(&line);
  return 0;
}

static int NVTX_API pop(nvtxDomainHandle_t domain) {
  int64_t time = now();
  Line line;
  begin(&line, "pop", time);
  add_domain(&line, domain);
  finish(&line);
  return 0;
}

static void NVTX_API mark(nvtxDomainHandle_t domain, const nvtxEventAttributes_t* event) {
  Line line;
  begin(&line, "mark", now());
  add_domain(&line, domain);
  add_event(&line, event);
  finish(&line);
}

static nvtxRangeId_t NVTX_API start(nvtxDomainHandle_t domain,
                                    const nvtxEventAttributes_t* event) {
  static atomic_uint_fast64_t started;
  nvtxRangeId_t id = atomic_fetch_add(&started, 1) + 1;
  Line line;
  begin(&line, "start", now());
  add_domain(&line, domain);
  add(&line, ", \"id\": %" PRIu64, id);
  add_event(&line, event);
  finish(&line);
  return id;
}

static void NVTX_API end(nvtxDomainHandle_t domain, nvtxRangeId_t id) {
  int64_t time = now();
  Line line;
  begin(&line, "end", time);
  add_domain(&line, domain);
  add(&line, ", \"id\": %" PRIu64, id);
  finish(&line);
}

/* The functions without a domain, with a message instead of attributes, or both. */

static nvtxEventAttributes_t named(const char* message) {
  nvtxEventAttributes_t event = {0};
  event.messageType = NVTX_MESSAGE_TYPE_ASCII;
  event.message.ascii = message;
  return event;
}

static nvtxEventAttributes_t wide_named(const wchar_t* message) {
  nvtxEventAttributes_t event = {0};
  event.messageType = NVTX_MESSAGE_TYPE_UNICODE;
  event.message.unicode = message;
  return event;
}

static int NVTX_API push_default(const nvtxEventAttributes_t* event) { return push(NULL, event); }
static int NVTX_API pop_default(void) { return pop(NULL); }
static void NVTX_API mark_default(const nvtxEventAttributes_t* event) { mark(NULL, event); }
static nvtxRangeId_t NVTX_API start_default(const nvtxEventAttributes_t* event) {
  return start(NULL, event);
}
static void NVTX_API end_default(nvtxRangeId_t id) { end(NULL, id); }
static int NVTX_API push_named(const char* message) {
  nvtxEventAttributes_t event = named(message);
  return push(NULL, &event);
}
static void NVTX_API mark_named(const char* message) {
  nvtxEventAttributes_t event = named(message);
  mark(NULL, &event);
}
static nvtxRangeId_t NVTX_API start_named(const char* message) {
  nvtxEventAttributes_t event = named(message);
  return start(NULL, &event);
}

static int NVTX_API push_wide(const wchar_t* message) {
  nvtxEventAttributes_t event = wide_named(message);
  return push(NULL, &event);
}
static void NVTX_API mark_wide(const wchar_t* message) {
  nvtxEventAttributes_t event = wide_named(message);
  mark(NULL, &event);
}
static nvtxRangeId_t NVTX_API start_wide(const wchar_t* message) {
  nvtxEventAttributes_t event = wide_named(message);
  return start(NULL, &event);
}

/* ---- what NVTX looks for ------------------------------------------------------------------ */

typedef struct {
  unsigned slot;
  NvtxFunctionPointer function;
} Replacement;

#define REPLACE(slot, function) {slot, (NvtxFunctionPointer)(function)}

static const Replacement core[] = {
    REPLACE(NVTX_CBID_CORE_MarkEx, mark_default),
    REPLACE(NVTX_CBID_CORE_MarkA, mark_named),
    REPLACE(NVTX_CBID_CORE_MarkW, mark_wide),
    REPLACE(NVTX_CBID_CORE_RangeStartEx, start_default),
    REPLACE(NVTX_CBID_CORE_RangeStartA, start_named),
    REPLACE(NVTX_CBID_CORE_RangeStartW, start_wide),
    REPLACE(NVTX_CBID_CORE_RangeEnd, end_default),
    REPLACE(NVTX_CBID_CORE_RangePushEx, push_default),
    REPLACE(NVTX_CBID_CORE_RangePushA, push_named),
    REPLACE(NVTX_CBID_CORE_RangePushW, push_wide),
    REPLACE(NVTX_CBID_CORE_RangePop, pop_default),
    REPLACE(NVTX_CBID_CORE_NameCategoryA, name_default_category),
    REPLACE(NVTX_CBID_CORE_NameCategoryW, name_wide_default_category),
};

static const Replacement core2[] = {
    REPLACE(NVTX_CBID_CORE2_DomainMarkEx, mark),
    REPLACE(NVTX_CBID_CORE2_DomainRangeStartEx, start),
    REPLACE(NVTX_CBID_CORE2_DomainRangeEnd, end),
    REPLACE(NVTX_CBID_CORE2_DomainRangePushEx, push),
    REPLACE(NVTX_CBID_CORE2_DomainRangePop, pop),
    REPLACE(NVTX_CBID_CORE2_DomainNameCategoryA, name_category),
    REPLACE(NVTX_CBID_CORE2_DomainNameCategoryW, name_wide_category),
    REPLACE(NVTX_CBID_CORE2_DomainRegisterStringA, register_text),
    REPLACE(NVTX_CBID_CORE2_DomainRegisterStringW, register_wide_text),
    REPLACE(NVTX_CBID_CORE2_DomainCreateA, create_domain),
    REPLACE(NVTX_CBID_CORE2_DomainCreateW, create_wide_domain),
};

static void replace(const NvtxExportTableCallbacks* callbacks, NvtxCallbackModule module,
                    const Replacement* replacements, size_t count) {
  NvtxFunctionTable table = NULL;
  unsigned size = 0;
  if (!callbacks->GetModuleFunctionTable(module, &table, &size) || !table) return;
  for (size_t k = 0; k < count; ++k)
    if (replacements[k].slot < size && table[replacements[k].slot])
      *table[replacements[k].slot] = replacements[k].function;
}

static int open_log(void) {
  const char* path = getenv("NVTX_RANGES_LOG");
  if (path && log_file < 0) log_file = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
  return log_file >= 0;
}

EXPORT int InitializeInjectionNvtx2(NvtxGetExportTableFunc_t get_table) {
  const NvtxExportTableCallbacks* callbacks = get_table(NVTX_ETID_CALLBACKS);
  if (!callbacks || !open_log()) return 0;
  replace(callbacks, NVTX_CB_MODULE_CORE, core, sizeof core / sizeof *core);
  replace(callbacks, NVTX_CB_MODULE_CORE2, core2, sizeof core2 / sizeof *core2);
  return 1;
}

EXPORT int InitializeInjectionNvtxExtension(nvtxExtModuleInfo_t* module) {
  if (!module || module->moduleId != NVTX_EXT_PAYLOAD_MODULEID || !module->segmentsCount) return 0;
  nvtxExtModuleSegment_t* segment = module->segments;
  if (NVTX3EXT_CBID_nvtxPayloadSchemaRegister < segment->slotCount)
    segment->functionSlots[NVTX3EXT_CBID_nvtxPayloadSchemaRegister] = (intptr_t)register_schema;
  return 1;
}
