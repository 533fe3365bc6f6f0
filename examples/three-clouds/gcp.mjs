// Who GCP says we are, by application default credentials. WHOAMI is a
// protected call that tells it.
import { GoogleAuth } from "google-auth-library";

const auth = new GoogleAuth({ scopes: "https://www.googleapis.com/auth/cloud-platform" });
const client = await auth.getClient();
const { data } = await client.request({ url: process.env.WHOAMI });
console.log("I am", data.principal);
