// Who Azure says we are, by the default credential. WHOAMI is a protected call
// that tells it.
import { DefaultAzureCredential } from "@azure/identity";

const { token } = await new DefaultAzureCredential().getToken("https://management.azure.com/.default");
const answer = await fetch(process.env.WHOAMI, { headers: { Authorization: `Bearer ${token}` } });
const body = await answer.json();
if (!answer.ok) throw new Error(JSON.stringify(body));
console.log("I am", body.appid);
