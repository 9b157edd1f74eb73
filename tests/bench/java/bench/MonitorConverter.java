// For the peer `debezium` of tests/bench/peers: converts a monitor's message, plain JSON without a schema, into the
// Struct that a JDBC sink needs. It stops reading after the last needed field, so that it does not limit the rate.
package bench;

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.core.JsonToken;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.util.Map;
import org.apache.kafka.connect.data.Field;
import org.apache.kafka.connect.data.Schema;
import org.apache.kafka.connect.data.SchemaAndValue;
import org.apache.kafka.connect.data.SchemaBuilder;
import org.apache.kafka.connect.data.Struct;
import org.apache.kafka.connect.errors.DataException;
import org.apache.kafka.connect.storage.Converter;

public final class MonitorConverter implements Converter {
    private static final Schema SCHEMA = SchemaBuilder.struct()
            .field("txn", Schema.STRING_SCHEMA)
            .field("event_type", Schema.STRING_SCHEMA)
            .field("block_number", Schema.OPTIONAL_INT64_SCHEMA)
            .field("log_index", Schema.OPTIONAL_INT32_SCHEMA)
            .field("address", Schema.OPTIONAL_STRING_SCHEMA)
            .field("payload", Schema.OPTIONAL_STRING_SCHEMA)
            .build();
    private static final Map<String, Field> WANTED = Map.of(
            "transactionHash", SCHEMA.field("txn"),
            "event", SCHEMA.field("event_type"),
            "blockNumber", SCHEMA.field("block_number"),
            "logIndex", SCHEMA.field("log_index"),
            "address", SCHEMA.field("address"));

    private final JsonFactory json = new JsonFactory();

    @Override
    public void configure(Map<String, ?> settings, boolean isKey) {}

    @Override
    public byte[] fromConnectData(String topic, Schema schema, Object value) {
        throw new UnsupportedOperationException("only for a sink");
    }

    @Override
    public SchemaAndValue toConnectData(String topic, byte[] message) {
        Struct row = new Struct(SCHEMA);
        try (JsonParser parser = json.createParser(message)) {
            parser.nextToken();
            for (int missing = WANTED.size(); missing > 0 && parser.nextToken() == JsonToken.FIELD_NAME;) {
                Field field = WANTED.get(parser.currentName());
                parser.nextToken();
                if (field == null) {
                    parser.skipChildren();
                    continue;
                }
                switch (field.schema().type()) {
                    case INT64 -> row.put(field, parser.getLongValue());
                    case INT32 -> row.put(field, parser.getIntValue());
                    default -> row.put(field, parser.getText());
                }
                missing--;
            }
        } catch (IOException error) {
            throw new DataException("not a monitor's message", error);
        }
        row.put("payload", new String(message, StandardCharsets.UTF_8));
        return new SchemaAndValue(SCHEMA, row);
    }
}
